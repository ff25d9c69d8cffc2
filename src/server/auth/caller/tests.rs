//! Owners and subjects by role; headers of callers.

use super::*;

fn headers(values: &[&[u8]]) -> HeaderMap {
    let values = values.iter().map(|value| HeaderValue::from_bytes(value).unwrap());
    let name = axum::http::HeaderName::from_static(USER_HEADER);
    values.map(|value| (name.clone(), value)).collect()
}

#[test]
fn user_is_any_bytes_within_the_limit() {
    assert_eq!(named_user(&HeaderMap::new()).unwrap(), None);
    let user = named_user(&headers(&[b"\xff\xfe../.."])).unwrap().unwrap();
    assert_eq!(user.as_bytes(), b"\xff\xfe../..");
    assert!(named_user(&headers(&[&[b'a'; 256]])).is_ok());
    for wrong in [headers(&[b""]), headers(&[&[b'a'; 257]]), headers(&[b"a", b"b"])] {
        let error = named_user(&wrong).unwrap_err();
        assert_eq!((error.status(), error.code()), (StatusCode::BAD_REQUEST, "invalid_user"));
    }
}

fn user(name: &str) -> Option<UserId> {
    Some(UserId::new(name).unwrap())
}

#[test]
fn role_decides_owner_and_subject() {
    let key = |role| Arc::new(Entry::new("id".into(), [0; 32], role, None, KeyLimits::default()));
    let alice = Role::User(user("alice").unwrap());
    // Role, header, body; then owner, subject, whether admin.
    let table = [
        (Some(&alice), None, None, Ok("alice"), Ok("alice"), false),
        (Some(&alice), user("alice"), user("alice"), Ok("alice"), Ok("alice"), false),
        (Some(&alice), user("bob"), None, Err("other_user"), Err("other_user"), false),
        (Some(&alice), None, user("bob"), Err("other_user"), Err("other_user"), false),
        (Some(&alice), user("alice"), user("bob"), Err("other_user"), Err("other_user"), false),
        (Some(&Role::Service), None, None, Err("missing_user"), Err("missing_user"), false),
        (Some(&Role::Service), user("bob"), None, Ok("bob"), Ok("bob"), false),
        (Some(&Role::Service), None, user("bob"), Ok("bob"), Ok("bob"), false),
        (Some(&Role::Service), user("bob"), user("eve"), Ok("bob"), Ok("bob"), false),
        (Some(&Role::Admin), None, None, Err("admin_has_no_sessions"), Err("missing_user"), true),
        (Some(&Role::Admin), None, user("bob"), Err("admin_has_no_sessions"), Ok("bob"), true),
        (Some(&Role::Admin), user("bob"), user("eve"), Err("admin_has_no_sessions"), Ok("eve"), true),
        (None, None, None, Err("missing_user"), Err("missing_user"), true),
        (None, user("bob"), None, Ok("bob"), Ok("bob"), true),
    ];
    for (role, header, body, owner, subject, is_admin) in table {
        let shown = format!("{role:?} {} {}", header.is_some(), body.is_some());
        let caller = match role {
            Some(role) => Caller::of_key(key(role.clone()), header),
            None => Caller::trusted(true, header),
        };
        let outcome = |result: Result<UserId, ApiError>| match result {
            Ok(user) => Ok(String::from_utf8(user.as_bytes().to_vec()).unwrap()),
            Err(error) => Err(error.code()),
        };
        assert_eq!(outcome(caller.owner(body.clone())), owner.map(str::to_owned), "{shown}");
        assert_eq!(outcome(caller.subject(body)), subject.map(str::to_owned), "{shown}");
        assert_eq!(caller.is_admin(), is_admin, "{shown}");
        assert_eq!(caller.sees(&user("eve").unwrap()), is_admin, "{shown}");
    }
    let default = Caller::trusted(true, None).or(user("me"));
    assert_eq!(default.owner(None).unwrap(), user("me").unwrap());
    assert_eq!(default.subject(None).unwrap(), user("me").unwrap());
    assert_eq!(default.owner(user("bob")).unwrap(), user("bob").unwrap());
    assert!(!Caller::trusted(false, None).is_admin());
    assert!(Caller::trusted(true, None).is_known_by_credentials());
    assert!(!Caller::trusted(true, user("a")).is_known_by_credentials());
    assert!(!Caller::of_key(key(Role::Service), None).is_known_by_credentials());
}

#[test]
fn name_round_trips_through_header() {
    assert_eq!(header_text("default"), "default");
    assert_eq!(header_text("a\r\nb%ü"), "a%0D%0Ab%25%C3%BC");
    for name in ["default", "a\r\nb%ü", "100%", "%zz"] {
        assert_eq!(named_by_header(&header_text(name)).as_deref(), Some(name));
    }
    for wrong in ["%", "%1", "%zz", "%ff"] {
        assert_eq!(named_by_header(&HeaderValue::from_static(wrong)), None);
    }
}

#[test]
fn request_id_is_kept_only_if_harmless() {
    let with = |id: &[u8]| {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID_HEADER, HeaderValue::from_bytes(id).unwrap());
        request_id(&headers)
    };
    assert_eq!(with(b"req-1"), "req-1");
    for id in [&b"a b"[..], b"", b"\xff", &[b'a'; 129]] {
        assert_eq!(with(id).len(), 36);
    }
}
