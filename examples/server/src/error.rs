//! [`ApiError`]: what a request can be told instead of an answer.

use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tiered_allocator::integrations::tower::Refused;
use tiered_allocator::profile::ProfileError;
use tiered_allocator::{AllocateError, PinError, QuotaExceeded, RegisterError};

/// Answered as JSON: a code for programs, a message for people, figures where
/// there are some.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("there is nothing here")]
    NotFound,
    #[error("name the tenant in the header x-tenant")]
    NoTenant,
    #[error("there is no tenant `{name}`")]
    UnknownTenant { name: String },
    #[error("`{given}` is not a tier: use Basic, Premium or Enterprise")]
    UnknownTier { given: String },
    #[error("{what} is {given}: it goes from {least} to {most}")]
    OutOfRange {
        what: &'static str,
        given: u64,
        least: u64,
        most: u64,
    },
    #[error(
        "this needs the operator's token: Authorization: Bearer, then the token that was printed at start"
    )]
    Unauthorized,
    #[error("requests from other sites are not accepted")]
    OtherOrigin,
    #[error("this server is not called `{host}`: use its address, or localhost")]
    OtherHost { host: String },
    #[error("{0}")]
    Json(#[from] JsonRejection),
    #[error("{0}")]
    Query(#[from] axum::extract::rejection::QueryRejection),
    #[error("{0}")]
    Quota(QuotaExceeded),
    /// What tenants share is used up: nobody's figures but the operator's.
    #[error("the server has no memory to spare: try again")]
    NoRoom,
    #[error("{0}")]
    Configure(#[from] RegisterError),
    #[error("{0}")]
    Profile(#[from] ProfileError),
    #[error("the system has no memory for {requested} bytes")]
    OutOfMemory { requested: usize },
    #[error("what was archived cannot be read back: {0}")]
    Archive(String),
    #[error("the script failed: {0}")]
    Script(String),
    #[error("as many jobs as the server takes at once are running: try again")]
    Busy,
    #[error("the job ended unexpectedly")]
    Ended,
}

impl ApiError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            ApiError::NotFound | ApiError::UnknownTenant { .. } => StatusCode::NOT_FOUND,
            ApiError::NoTenant => StatusCode::BAD_REQUEST,
            ApiError::UnknownTier { .. } | ApiError::OutOfRange { .. } | ApiError::Script(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            ApiError::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiError::OtherOrigin => StatusCode::FORBIDDEN,
            ApiError::OtherHost { .. } => StatusCode::MISDIRECTED_REQUEST,
            ApiError::Json(rejection) => rejection.status(),
            ApiError::Query(rejection) => rejection.status(),
            ApiError::Quota(_) => StatusCode::TOO_MANY_REQUESTS,
            ApiError::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            ApiError::Profile(ProfileError::OutOfMemory { .. })
            | ApiError::Busy
            | ApiError::OutOfMemory { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Configure(_) | ApiError::Profile(_) => StatusCode::CONFLICT,
            ApiError::Archive(_) | ApiError::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ApiError::NotFound => "not_found",
            ApiError::NoTenant => "no_tenant",
            ApiError::UnknownTenant { .. } => "unknown_tenant",
            ApiError::UnknownTier { .. } => "unknown_tier",
            ApiError::OutOfRange { .. } => "out_of_range",
            ApiError::Unauthorized => "unauthorized",
            ApiError::OtherOrigin => "other_origin",
            ApiError::OtherHost { .. } => "other_host",
            ApiError::Json(_) | ApiError::Query(_) => "bad_input",
            ApiError::Quota(_) => "over_quota",
            ApiError::NoRoom => "no_room",
            ApiError::Configure(_) => "does_not_fit",
            ApiError::Profile(ProfileError::AlreadyRunning) => "profile_running",
            ApiError::Profile(ProfileError::NotStarted) => "no_profile",
            ApiError::Profile(ProfileError::OutOfMemory { .. }) | ApiError::OutOfMemory { .. } => {
                "out_of_memory"
            }
            ApiError::Profile(_) => "profile",
            ApiError::Archive(_) => "archive",
            ApiError::Script(_) => "script",
            ApiError::Busy => "busy",
            ApiError::Ended => "ended",
        }
    }

    fn figures(&self) -> serde_json::Value {
        match self {
            ApiError::Quota(quota) => json!({
                "requested": quota.requested,
                "charged": quota.charged,
                "limit": quota.limit,
            }),
            ApiError::OutOfRange {
                given, least, most, ..
            } => json!({
                "given": given,
                "least": least,
                "most": most,
            }),
            ApiError::Configure(RegisterError::GuaranteeDoesNotFit {
                requested,
                charged,
                limit,
                ..
            }) => json!({ "requested": requested, "charged": charged, "limit": limit }),
            _ => serde_json::Value::Null,
        }
    }
}

impl ApiError {
    pub(crate) fn body(&self) -> String {
        let body = json!({ "error": {
            "code": self.code(),
            "message": self.to_string(),
            "figures": self.figures(),
        }});
        body.to_string()
    }
}

impl From<QuotaExceeded> for ApiError {
    fn from(quota: QuotaExceeded) -> ApiError {
        match Refused::Quota(&quota).is_own() {
            true => ApiError::Quota(quota),
            false => ApiError::NoRoom,
        }
    }
}

impl From<AllocateError> for ApiError {
    fn from(error: AllocateError) -> ApiError {
        match error {
            AllocateError::QuotaExceeded(quota) => quota.into(),
            AllocateError::UnknownClient(unknown) => ApiError::UnknownTenant { name: unknown.name },
            AllocateError::OutOfMemory { requested } => ApiError::OutOfMemory { requested },
            _ => ApiError::Ended,
        }
    }
}

impl From<PinError> for ApiError {
    fn from(error: PinError) -> ApiError {
        match error {
            PinError::QuotaExceeded(quota) => quota.into(),
            other => ApiError::Archive(other.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status(), kind, self.body()).into_response();
        if matches!(self, ApiError::Unauthorized) {
            let challenge = header::HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
