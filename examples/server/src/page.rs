//! The page: three files, part of the program.

use crate::app::App;
use axum::Router;
use axum::http::header;
use axum::routing::{MethodRouter, get};
use std::sync::Arc;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", file("text/html", include_str!("page/index.html")))
        .route(
            "/style.css",
            file("text/css", include_str!("page/style.css")),
        )
        .route(
            "/app.js",
            file("text/javascript", include_str!("page/app.js")),
        )
        .route(
            "/icon.svg",
            file("image/svg+xml", include_str!("page/icon.svg")),
        )
}

fn file(kind: &'static str, text: &'static str) -> MethodRouter<Arc<App>> {
    get(async move || ([(header::CONTENT_TYPE, kind)], text))
}
