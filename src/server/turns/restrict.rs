//! What a key may use: models, tools, permissions, spending. Pure.

use axum::http::StatusCode;

use crate::adapter;
use crate::config::PermissionPolicy;
use crate::model::{Decision, PermissionRequest, RequestKind};
use crate::server::api::error::ApiError;
use crate::server::auth::keys::KeyLimits;
use crate::turn::{Restrictions, SteerRights, TurnOptions};

/// Narrows the options of a turn to what the key may use.
///
/// # Errors
/// 403 for a model that the key may not use.
pub(crate) fn restrict(options: &mut TurnOptions, limits: &KeyLimits) -> Result<(), ApiError> {
    if !limits.restrict_use() {
        return Ok(());
    }
    if let Some(models) = &limits.models {
        for (field, named) in [("model", &options.model), ("fallback_model", &options.fallback_model)] {
            if named.as_ref().is_some_and(|name| !name.is_empty() && !models.contains(name)) {
                let message = format!("{field}: this key may use only {}", models.join(", "));
                return Err(forbidden("model_not_allowed", message));
            }
        }
        // Without a name a turn would get the model of a former turn, perhaps with another key.
        options.model = options.model.take().or_else(|| models.first().cloned());
        options.fallback_model.get_or_insert_default();
    }
    options.restrictions = Some(restrictions(limits));
    Ok(())
}

fn restrictions(limits: &KeyLimits) -> Restrictions {
    Restrictions {
        policy: limits.policy,
        models: limits.models.as_ref().map(|models| models.iter().cloned().collect()),
        tools: limits.tools.as_ref().map(|tools| tools.iter().cloned().collect()),
        usd_per_day: limits.usd_per_day,
    }
}

/// What a turn may use at most that a text of the key goes to.
pub(crate) fn steer_rights(limits: &KeyLimits) -> SteerRights {
    SteerRights {
        restrictions: limits.restrict_use().then(|| restrictions(limits)),
        mcp_servers: limits.mcp.as_ref().map(|names| names.iter().cloned().collect()),
    }
}

/// Whether the key may give this answer to a request.
///
/// # Errors
/// 403 for a permission that the key's own turns could not get.
pub(crate) fn check_answer(
    decision: &Decision,
    request: &PermissionRequest,
    limits: &KeyLimits,
) -> Result<(), ApiError> {
    if matches!(decision, Decision::Deny { .. } | Decision::Decline | Decision::Cancel) {
        return Ok(());
    }
    let named = |list: &Option<Vec<String>>, name: &str| {
        list.as_ref().is_none_or(|list| list.iter().any(|other| other == name))
    };
    let server = match request.kind {
        RequestKind::Elicitation => Some(request.tool_name.as_str()),
        _ => adapter::mcp_server_of(&request.tool_name),
    };
    let is_usable = match server {
        Some(server) => named(&limits.mcp, server),
        None => named(&limits.tools, &request.tool_name),
    };
    if limits.policy == Some(PermissionPolicy::Deny) || !is_usable {
        return Err(forbidden("permission_not_allowed", "this key may not permit this".to_owned()));
    }
    Ok(())
}

fn forbidden(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut KeyLimits)) -> KeyLimits {
        let mut limits = KeyLimits::default();
        change(&mut limits);
        limits
    }

    fn list(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn models_of_a_key_are_named_or_the_first() {
        let of_key = limits(|limits| limits.models = list(&["sonnet", "haiku"]));
        for (model, fallback, expected) in [
            (None, None, Ok((Some("sonnet"), Some("")))),
            (Some("haiku"), Some("sonnet"), Ok((Some("haiku"), Some("sonnet")))),
            (Some("opus"), None, Err("model_not_allowed")),
            (Some("haiku"), Some("opus"), Err("model_not_allowed")),
        ] {
            let mut options = TurnOptions {
                model: model.map(str::to_owned),
                fallback_model: fallback.map(str::to_owned),
                ..TurnOptions::default()
            };
            let restricted = restrict(&mut options, &of_key).map_err(|error| error.code());
            let chosen = restricted.map(|()| (options.model.as_deref(), options.fallback_model.as_deref()));
            assert_eq!(chosen, expected, "{model:?} {fallback:?}");
        }
    }

    #[test]
    fn turn_of_an_unrestricted_key_stays_as_it_is() {
        let of_key = limits(|limits| limits.requests_per_minute = std::num::NonZeroU32::new(3));
        let mut options = TurnOptions::default().model("opus");
        restrict(&mut options, &of_key).unwrap();
        assert_eq!(options, TurnOptions::default().model("opus"));
        restrict(&mut options, &limits(|limits| limits.tools = list(&[]))).unwrap();
        assert_eq!(options.restrictions.unwrap().tools, Some(std::collections::BTreeSet::new()));
    }

    fn request(subtype: &str, name: &str) -> PermissionRequest {
        let line = serde_json::json!({"type": "control_request", "request_id": "r", "request": {
            "subtype": subtype, "tool_name": name, "input": {},
            "mcp_server_name": name, "message": "m", "requested_schema": {}}});
        match adapter::host_request(line.to_string().as_bytes()) {
            Some(adapter::HostRequest::Permission(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn key_permits_no_tool_beyond_its_own() {
        let allow = Decision::Allow { updated_input: None };
        let refused =
            |limits: &KeyLimits, tool| check_answer(&allow, &request("can_use_tool", tool), limits).is_err();
        let denying = limits(|limits| limits.policy = Some(PermissionPolicy::Deny));
        assert!(refused(&denying, "Bash"));
        let deny = Decision::Deny { message: "no".into() };
        check_answer(&deny, &request("can_use_tool", "Bash"), &denying).unwrap();
        let reading = limits(|limits| (limits.tools, limits.mcp) = (list(&["Read"]), list(&["docs"])));
        for (tool, is_refused) in
            [("Read", false), ("Bash", true), ("mcp__docs__get", false), ("mcp__git__push", true)]
        {
            assert_eq!(refused(&reading, tool), is_refused, "{tool}");
            assert!(!refused(&KeyLimits::NONE, tool));
        }
    }

    #[test]
    fn key_answers_no_server_beyond_its_own() {
        let accept = Decision::Accept { content: None };
        let reading = limits(|limits| limits.mcp = list(&["docs"]));
        check_answer(&accept, &request("elicitation", "docs"), &reading).unwrap();
        assert!(check_answer(&accept, &request("elicitation", "git"), &reading).is_err());
        check_answer(&Decision::Decline, &request("elicitation", "git"), &reading).unwrap();
    }
}
