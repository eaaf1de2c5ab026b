//! Whose request it is: the header `x-tenant` says so, and from there on the
//! tenant pays for what is allocated.
//!
//! In a server for strangers the name would come out of what they proved to
//! be. A header that no plain form of another site can set is enough here.

use crate::app::App;
use crate::error::ApiError;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{self, header};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::Instant;
use tiered_allocator::integrations::tower::{Refused, TenantLayer};

pub(crate) const TENANT: &str = "x-tenant";

/// Finds the tenant, for the handler and for [`layer`], and keeps the figures
/// of how it is served.
pub(crate) async fn find_tenant(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let name = request.headers().get(TENANT);
    let name = name.and_then(|name| name.to_str().ok());
    let tenant = Arc::clone(app.tenant(name.ok_or(ApiError::NoTenant)?)?);
    let _permit = app.jobs.try_acquire().map_err(|_| ApiError::Busy)?;
    let extensions = request.extensions_mut();
    extensions.insert(tenant.client.clone());
    extensions.insert(Arc::clone(&tenant));
    let begun = Instant::now();
    let response = next.run(request).await;
    tenant.served(begun.elapsed(), response.status());
    Ok(response)
}

/// Charges what is behind it to the tenant, and ends what is over its quota.
pub(crate) fn layer() -> TenantLayer {
    TenantLayer::from_extension().answer(|refused| {
        let Refused::Quota(quota) = refused else {
            return None;
        };
        answer(&ApiError::from((*quota).clone()))
    })
}

fn answer(error: &ApiError) -> Option<http::Response<Bytes>> {
    let answer = http::Response::builder()
        .status(error.status())
        .header(header::CONTENT_TYPE, "application/json");
    answer.body(error.body().into()).ok()
}
