//! The authenticated caller of a request, and the users whose sessions it may use. Pure.

use std::sync::Arc;
#[cfg(feature = "cluster")]
use std::sync::{Mutex, OnceLock};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
#[cfg(feature = "cluster")]
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "cluster")]
use crate::cluster::Grant;
use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::audit;
#[cfg(feature = "cluster")]
use crate::server::auth::identity::Owner;
use crate::server::auth::keys::{Entry, KeyLimits, Role};
use crate::server::percent;
#[cfg(feature = "cluster")]
use crate::support::lock::MutexExt as _;
use crate::turn::Sender;

pub(crate) const USER_HEADER: &str = "x-pilotlight-user";
/// Header with the request id, in requests and responses.
pub(crate) const REQUEST_ID_HEADER: &str = "x-request-id";
/// Longest request id accepted; longer ones are replaced.
const MAX_REQUEST_ID: usize = 128;

/// Identity of a caller for shared limits: id of its key, user named by the header.
pub(crate) type CallerId = (Option<String>, Option<UserId>);

/// The sender of a request, in the extensions of every request to a protected path.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    who: Who,
    named: Option<UserId>,
    /// User of requests that name none; only without keys.
    default: Option<UserId>,
    revoked: Option<CancellationToken>,
    /// What the audit log will have of the request.
    entry: Option<Arc<audit::Entry>>,
    /// The request came from another node of the cluster.
    #[cfg(feature = "cluster")]
    is_forwarded: bool,
    /// What is found out of the request once, however often it is routed.
    #[cfg(feature = "cluster")]
    routing: Arc<Routing>,
}

#[cfg(feature = "cluster")]
#[derive(Debug, Default)]
struct Routing {
    /// The user of the request, kept on this node of the cluster while it is answered.
    here: Mutex<Option<(UserId, Grant)>>,
    /// The user whom the credentials in the body have identified.
    identified: OnceLock<Owner>,
    /// When the request has waited long enough for its user, here and on the node that gets it.
    deadline: OnceLock<Instant>,
}

#[derive(Debug, Clone)]
enum Who {
    /// Without keys every caller is trusted; on loopback also as the operator.
    Trusted {
        is_local: bool,
    },
    Key(Arc<Entry>),
}

impl Caller {
    pub(crate) fn trusted(is_local: bool, named: Option<UserId>) -> Self {
        Self {
            who: Who::Trusted { is_local },
            named,
            default: None,
            revoked: None,
            entry: None,
            #[cfg(feature = "cluster")]
            is_forwarded: false,
            #[cfg(feature = "cluster")]
            routing: Arc::default(),
        }
    }

    pub(crate) fn of_key(key: Arc<Entry>, named: Option<UserId>) -> Self {
        Self {
            who: Who::Key(key),
            named,
            default: None,
            revoked: None,
            entry: None,
            #[cfg(feature = "cluster")]
            is_forwarded: false,
            #[cfg(feature = "cluster")]
            routing: Arc::default(),
        }
    }

    /// Sets the user of requests that name none.
    pub(crate) fn or(self, default: Option<UserId>) -> Self {
        Self { default, ..self }
    }

    /// Whether the request came from another node of the cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_forwarded(&self) -> bool {
        self.is_forwarded
    }

    /// Keeps the user of the request on this node of the cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn routed(&self, user: &UserId, grant: Grant) {
        // The last one: the user may have been lost since the try before.
        *self.routing.here.lock_unpoisoned() = Some((user.clone(), grant));
    }

    /// Lets go whom an earlier try has kept here: the request may be answered elsewhere.
    #[cfg(feature = "cluster")]
    pub(crate) fn route_again(&self) {
        *self.routing.here.lock_unpoisoned() = None;
    }

    /// The user of the request, if this node of the cluster has it.
    #[cfg(feature = "cluster")]
    pub(crate) fn served(&self) -> Option<(UserId, Grant)> {
        self.routing.here.lock_unpoisoned().clone()
    }

    /// Sets, once, when the request has waited long enough for its user. Returns what is set.
    #[cfg(feature = "cluster")]
    pub(crate) fn routes_by(&self, deadline: Instant) -> Instant {
        *self.routing.deadline.get_or_init(|| deadline)
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn route_deadline(&self) -> Option<Instant> {
        self.routing.deadline.get().copied()
    }

    /// Notes whom the credentials in the body have identified, here or on the node that the caller reached.
    #[cfg(feature = "cluster")]
    pub(crate) fn identify(&self, owner: &Owner) {
        self.routing.identified.get_or_init(|| owner.clone());
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn identified(&self) -> Option<&Owner> {
        self.routing.identified.get()
    }

    /// Sets the token that is cancelled with the key.
    pub(crate) fn until(self, revoked: CancellationToken) -> Self {
        Self { revoked: Some(revoked), ..self }
    }

    /// Sets the entry of the audit log.
    pub(crate) fn recorded(self, entry: Option<Arc<audit::Entry>>) -> Self {
        Self { entry, ..self }
    }

    pub(crate) fn entry(&self) -> Option<&Arc<audit::Entry>> {
        self.entry.as_ref()
    }

    /// Notes for the audit log whose session the request is about.
    pub(crate) fn is_about(&self, user: &UserId) {
        if let Some(entry) = &self.entry {
            entry.about(user);
        }
    }

    /// Who calls, for the audit log: the id of the key, and what the caller may do.
    pub(crate) fn recorded_as(&self) -> (Option<&str>, &'static str) {
        let role = match &self.who {
            Who::Trusted { is_local: true } => "local",
            Who::Trusted { is_local: false } => "anyone",
            Who::Key(key) => match key.role() {
                Role::User(_) => "user",
                Role::Service => "service",
                Role::Admin => "admin",
            },
        };
        (self.key_id(), role)
    }

    /// Token cancelled when the caller's key is revoked; `None` without a key.
    pub(crate) fn revoked(&self) -> Option<&CancellationToken> {
        self.revoked.as_ref()
    }

    /// The user whose session runs a turn. `named` is the user in the body; the header takes precedence.
    pub(crate) fn owner(&self, named: Option<UserId>) -> Result<UserId, ApiError> {
        self.owner_of(named).inspect(|user| self.is_about(user))
    }

    fn owner_of(&self, named: Option<UserId>) -> Result<UserId, ApiError> {
        match self.key().map(|key| key.role()) {
            Some(Role::User(user)) => {
                let is_other = |name: &&UserId| *name != user;
                match self.named.iter().chain(named.as_ref()).find(is_other) {
                    Some(_) => {
                        Err(forbidden("other_user", "this key is for another user than the one named"))
                    }
                    None => Ok(user.clone()),
                }
            }
            Some(Role::Admin) => {
                Err(forbidden("admin_has_no_sessions", "a key of the role admin has no sessions of its own"))
            }
            Some(Role::Service) => self.named.clone().or(named).ok_or_else(|| missing_user(NAME_IT)),
            None => {
                let user = self.named.clone().or(named).or_else(|| self.default.clone());
                user.ok_or_else(|| missing_user(NAME_IT_OR_CONFIGURE))
            }
        }
    }

    /// The user whose sessions are inspected. As [`Caller::owner`], but an admin key may name any user.
    pub(crate) fn subject(&self, named: Option<UserId>) -> Result<UserId, ApiError> {
        match self.key().map(|key| key.role()) {
            Some(Role::Admin) => {
                let user = named.or_else(|| self.named.clone()).ok_or_else(|| missing_user(NAME_IT));
                user.inspect(|user| self.is_about(user))
            }
            _ => self.owner(named),
        }
    }

    /// Whose turns the caller may send, as a word for clients.
    pub(crate) fn speaks_for(&self) -> &'static str {
        match self.key().map(|key| key.role()) {
            Some(Role::User(_)) => "itself",
            Some(Role::Admin) => "nobody",
            Some(Role::Service) | None => "anybody",
        }
    }

    pub(crate) fn is_user(&self) -> bool {
        matches!(self.key().map(|key| key.role()), Some(Role::User(_)))
    }

    /// Whether the caller may see and stop all sessions.
    pub(crate) fn is_admin(&self) -> bool {
        match &self.who {
            Who::Trusted { is_local } => *is_local,
            Who::Key(key) => *key.role() == Role::Admin,
        }
    }

    /// Whether the caller has a key of the role admin.
    pub(crate) fn is_operator(&self) -> bool {
        matches!(self.key().map(|key| key.role()), Some(Role::Admin))
    }

    /// Whether the caller may see the sessions of `user`.
    pub(crate) fn sees(&self, user: &UserId) -> bool {
        self.is_admin() || self.owner_of(None).is_ok_and(|own| own == *user)
    }

    /// Whether credentials in the body may identify the user: only without keys and without a named user.
    pub(crate) fn is_known_by_credentials(&self) -> bool {
        matches!(self.who, Who::Trusted { .. }) && self.named.is_none()
    }

    /// Kind of sender of MCP servers; unauthenticated callers are strangers.
    pub(crate) fn sender(&self) -> Sender {
        match self.key().map(|key| key.role()) {
            Some(Role::Service) => Sender::Service,
            _ => Sender::Other,
        }
    }

    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key().map(|key| key.id())
    }

    /// Identity for shared limits.
    pub(crate) fn name(&self) -> CallerId {
        (self.key_id().map(str::to_owned), self.named.clone())
    }

    pub(crate) fn limits(&self) -> &KeyLimits {
        self.key().map_or(&KeyLimits::NONE, |key| key.limits())
    }

    pub(crate) fn default_user(&self) -> Option<&UserId> {
        self.default.as_ref()
    }

    pub(crate) fn named(&self) -> Option<&UserId> {
        self.named.as_ref()
    }

    fn key(&self) -> Option<&Arc<Entry>> {
        match &self.who {
            Who::Trusted { .. } => None,
            Who::Key(key) => Some(key),
        }
    }
}

fn forbidden(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, message)
}

pub(crate) fn named_user(headers: &HeaderMap) -> Result<Option<UserId>, ApiError> {
    let mut values = headers.get_all(USER_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid("invalid_user", format!("{USER_HEADER} is given more than once")));
    }
    let user = UserId::new(value.as_bytes());
    user.map(Some).map_err(|error| ApiError::invalid("invalid_user", format!("{USER_HEADER}: {error}")))
}

fn missing_user(way_out: &str) -> ApiError {
    ApiError::invalid("missing_user", way_out)
}

const NAME_IT: &str = "name the user that this request is for in the x-pilotlight-user header";
const NAME_IT_OR_CONFIGURE: &str = "name the user that this request is for in the x-pilotlight-user header; for clients \
     that cannot set headers a server on loopback can be given http.default_user";

/// Request id: the caller's if it is printable ASCII, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(usable).map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// Encodes a conversation's name as a header value, percent-encoding other bytes.
pub(crate) fn header_text(name: &str) -> HeaderValue {
    let text = percent::encode(name.as_bytes(), |byte| (b' '..=b'~').contains(&byte));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(crate) fn named_by_header(value: &HeaderValue) -> Option<String> {
    String::from_utf8(percent::decode(value.as_bytes())?).ok()
}

#[cfg(test)]
mod tests;
#[cfg(feature = "cluster")]
mod wire;
