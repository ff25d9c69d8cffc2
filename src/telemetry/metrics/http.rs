//! Metrics of the HTTP server, under the same prefix and in the same recorder as those of its core.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram};

use super::catalogue::{Metric, Unit, declare};
use super::labels::{
    AttachRefusal, AuditLoss, AuthFailure, Dialect, HttpKind, HttpLimit, Reload, Route, StatusClass,
    WebhookAttempt, WebhookDrop,
};
use super::series::{By, ByBoth, Family, Registrar};

declare! {
    /// Metrics of one server.
    HttpMetrics:

    requests: ByBoth<Route, StatusClass, Counter> = "http_requests_total", Count,
        "HTTP requests answered, by route and class of the status.";
    turns: By<Dialect, Counter> = "http_turns_total", Count,
        "Requests for a turn whose body was read, by dialect.";
    auth_failures: By<AuthFailure, Counter> = "auth_failures_total", Count,
        "Requests refused because of their credentials or origin, by reason.";
    limited: By<HttpLimit, Counter> = "http_limited_total", Count,
        "Requests refused by a rate limit or the connection limit, by limit.";
    webhook_attempts: By<WebhookAttempt, Counter> = "webhook_attempts_total", Count,
        "Attempts to deliver a webhook, by outcome.";
    webhook_drops: By<WebhookDrop, Counter> = "webhook_drops_total", Count,
        "Webhooks that were not delivered and are not tried again, by reason.";
    webhooks_waiting: Gauge = "webhooks_waiting", Count, "Webhooks that wait for an attempt.";
    attached: Gauge = "attached_clients", Count, "Attached clients, with their child or on the way to one.";
    attach_refused: By<AttachRefusal, Counter> = "attach_refused_total", Count,
        "Connections of clients that could not attach, by reason.";
    audit_lines: Counter = "audit_lines_total", Count, "Lines written to the audit log.";
    audit_lost: By<AuditLoss, Counter> = "audit_lost_total", Count,
        "Lines of the audit log that were lost, by reason.";
    reloads: By<Reload, Counter> = "config_reloads_total", Count,
        "Reloads of the configuration, by outcome; after an invalid one the former configuration stays.";
    restart_keys: Gauge = "config_restart_keys", Count,
        "Changed configuration keys that wait for the next start of the server.";
    response: By<HttpKind, Histogram> = "http_response_seconds", Seconds,
        "Time from the head of a request to the head of its response; for turns, to the first event.",
        &[0.0005, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    render: Histogram = "metrics_render_seconds", Seconds, "Time to render a scrape.",
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
}

impl HttpMetrics {
    /// Counts a response when its head is sent, `took` after the head of the request.
    pub(crate) fn answered(&self, route: Route, status: StatusClass, took: Duration) {
        self.requests.add(route, status, 1);
        let kind = match route {
            Route::Messages | Route::Keepalive | Route::Chat | Route::Responses => HttpKind::Turn,
            _ => HttpKind::Other,
        };
        self.response.record(kind, took);
    }
}
