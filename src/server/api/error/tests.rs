//! Retry headers, statuses and long texts of errors.

use super::*;
use crate::error::{StartFailure, TurnError};

#[test]
fn refusals_are_retryable_and_losses_are_not() {
    let open = TurnError::CircuitOpen {
        last: StartFailure::Handshake("no".into()),
        retry_after: Duration::from_millis(1500),
    };
    let response = ApiError::from(open).render(ErrorForm::Messages, "id");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    assert_eq!(response.headers()[RETRY_AFTER_MS], "1500");
    assert!(!response.headers().contains_key("x-should-retry"));

    let response = ApiError::from(TurnError::Internal("x")).render(ErrorForm::Messages, "id");
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(!response.headers().contains_key(header::RETRY_AFTER));

    for before in [TurnError::Draining, TurnError::Storage(std::io::Error::other("full").into())] {
        let response = ApiError::from(before).render(ErrorForm::Messages, "id");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}

#[test]
fn overload_is_529_only_in_the_messages_api() {
    let overloaded = || TurnError::Overloaded { reason: "no room", retry_after: PAUSE };
    let status = |error: TurnError, form| ApiError::from(error).render(form, "id").status().as_u16();
    assert_eq!(status(overloaded(), ErrorForm::Messages), 529);
    for form in [ErrorForm::Own, ErrorForm::ChatCompletions] {
        assert_eq!(status(overloaded(), form), 503);
    }
    for form in [ErrorForm::Messages, ErrorForm::Own, ErrorForm::ChatCompletions] {
        assert_eq!(status(TurnError::Draining, form), 503);
    }
}

#[test]
fn long_text_is_cut_between_characters() {
    let error = ApiError::invalid("x", "ü".repeat(10_000));
    assert_eq!(error.message.chars().count(), MAX_MESSAGE_CHARS + 1);
}

#[test]
fn refused_threads_are_named_as_by_the_api() {
    let details = |field| ApiError::unsupported(field, "no").body(None)["error"]["details"].clone();
    let expected = json!({ "error_code": "thread_unsupported_request", "unsupported": ["thread"] });
    assert_eq!(details("thread"), expected);
    assert_eq!(details("compaction"), Value::Null);
}
