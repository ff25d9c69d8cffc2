//! User and query string of a request about sessions.
//!
//! Parsed by hand, because a user name may be any bytes. Unknown fields are ignored.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;

use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::server::percent;

/// Maximum fields; more are refused.
const MAX_FIELDS: usize = 32;

pub(crate) struct SessionQuery {
    pub(crate) caller: Caller,
    /// The user in `?user=`. The caller holds the user of the header.
    user: Option<UserId>,
    pub(crate) fields: Query,
}

impl SessionQuery {
    /// The user whose session is used.
    pub(crate) fn owner(&self) -> Result<UserId, ApiError> {
        self.caller.owner(self.user.clone())
    }

    /// The user whose sessions are inspected.
    pub(crate) fn subject(&self) -> Result<UserId, ApiError> {
        self.caller.subject(self.user.clone())
    }

    /// Whose streams a stream of this user's sessions counts among. The operator's are apart: a user who has opened all of
    /// them would be out of sight.
    pub(crate) fn streams_of(&self, user: UserId) -> Option<UserId> {
        (!self.caller.is_operator()).then_some(user)
    }

    /// Whether the request covers the sessions of all users.
    pub(crate) fn is_about_all(&self) -> bool {
        self.caller.is_admin() && self.user.is_none() && self.caller.named().is_none()
    }
}

/// Only where the user is: in a cluster the request may belong to another node.
impl FromRequestParts<Arc<App>> for SessionQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or(TurnError::Internal("a request came without its caller"))?;
        let fields = Query::of(&parts.uri)?;
        let user = fields.get("user")?.map(UserId::new).transpose();
        let user = user.map_err(|error| ApiError::invalid("invalid_user", format!("user: {error}")))?;
        if user.as_ref().zip(caller.named()).is_some_and(|(one, other)| one != other) {
            let message = "the header and the field `user` name different users";
            return Err(ApiError::invalid("invalid_user", message));
        }
        let query = Self { caller, user, fields };
        // Whether the request may be about the user is the handler's to say.
        if !query.is_about_all()
            && let Ok(user) = query.subject()
        {
            app.route(&query.caller, &user).await?;
        }
        Ok(query)
    }
}

#[derive(Debug)]
pub(crate) struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    pub(crate) fn of(uri: &Uri) -> Result<Self, ApiError> {
        Self::parse(uri.query().unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, ApiError> {
        let fields = text.split('&').filter(|field| !field.is_empty());
        let fields = fields.map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            Ok((decode(name)?, decode(value)?))
        });
        let fields: Vec<_> = fields.take(MAX_FIELDS + 1).collect::<Result<_, ApiError>>()?;
        if fields.len() > MAX_FIELDS {
            return Err(invalid(format!("there are more than {MAX_FIELDS} fields")));
        }
        Ok(Self(fields))
    }

    /// Value of a field; repeating the field is an error.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&[u8]>, ApiError> {
        let mut values = self.0.iter().filter(|(field, _)| field == name.as_bytes()).map(|(_, value)| value);
        let first = values.next();
        if values.next().is_some() {
            return Err(invalid(format!("{name}: is given more than once")));
        }
        Ok(first.map(Vec::as_slice))
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let text = self.get(name)?.map(std::str::from_utf8).transpose();
        text.map_err(|_| invalid(format!("{name}: must be UTF-8")))
    }

    /// Value of a boolean field, `false` by default.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name)? {
            Some(b"true") => Ok(true),
            None | Some(b"false") => Ok(false),
            Some(_) => Err(invalid(format!("{name}: must be true or false"))),
        }
    }

    /// Value of a field that is a whole number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let text = self.text(name)?;
        let number = text.map(str::parse).transpose();
        number.map_err(|_| invalid(format!("{name}: must be a whole number")))
    }

    /// Value of `limit`: 1 to `most`.
    pub(crate) fn limit(&self, default: usize, most: usize) -> Result<usize, ApiError> {
        let Some(text) = self.text("limit")? else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| invalid(format!("limit: must be a number from 1 to {most}")))
    }
}

fn invalid(problem: String) -> ApiError {
    ApiError::invalid("invalid_query", problem)
}

/// Decodes percent-encoding, and `+` as a space.
fn decode(text: &str) -> Result<Vec<u8>, ApiError> {
    let text = text.replace('+', " ");
    let unreadable = || invalid("a percent sign must be followed by two hexadecimal digits".to_owned());
    percent::decode(text.as_bytes()).ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded() {
        let query = Query::parse("user=a%FF%2fb+c&&purge=true&x=%&y").err();
        assert_eq!(query.unwrap().code(), "invalid_query");
        let query = Query::parse("user=a%FF%2fb+c&&purge=true&y&limit=7").unwrap();
        assert_eq!(query.get("user").unwrap(), Some(&b"a\xff/b c"[..]));
        assert_eq!(query.get("y").unwrap(), Some(&b""[..]));
        assert!(query.text("user").is_err());
        assert_eq!(query.get("none").unwrap(), None);
        assert!(query.flag("purge").unwrap() && !query.flag("none").unwrap());
        assert!(query.flag("y").is_err() && query.number("y").is_err());
        assert_eq!((query.number("limit").unwrap(), query.number("none").unwrap()), (Some(7), None));
        assert_eq!(query.limit(5, 10).unwrap(), 7);
    }

    #[test]
    fn invalid_field_is_named() {
        for (text, named) in [
            ("limit=0", "limit"),
            ("limit=11", "limit"),
            ("limit=-1", "limit"),
            ("limit=%ff", "limit"),
            ("limit=1&limit=1", "limit"),
        ] {
            let error = format!("{:?}", Query::parse(text).unwrap().limit(5, 10).unwrap_err());
            assert!(error.contains(named), "{text}: {error}");
        }
        for text in ["%", "a=%f", "a=%fg", &"a&".repeat(MAX_FIELDS + 1)] {
            assert!(Query::parse(text).is_err(), "{text}");
        }
    }
}
