//! The dashboards, rules and alerts, proven: files against the code and against Grafana's types, and every expression
//! against a Prometheus that watches a live server to which known things are done.

mod expression;
mod files;
mod live;
mod prometheus;
mod provisioning;
mod questions;
mod traffic;
