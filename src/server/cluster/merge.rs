//! One list of the sessions of all nodes, for operators.

use std::collections::HashSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Request, Uri};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use tokio::time::timeout;

use super::ClusterSide;
use crate::server::api::error::ErrorForm;
use crate::server::auth::caller::Caller;

/// Maximum time to wait for another node: an operator wants to see the others.
const WITHIN: Duration = Duration::from_secs(3);
/// Longest list of another node.
const MAX_BYTES: usize = 16 << 20;

impl ClusterSide {
    /// Adds the sessions of other nodes to a list. A node that does not answer is named in `unreachable`.
    pub(crate) async fn with_others(
        &self,
        mut list: Value,
        uri: &Uri,
        caller: &Caller,
        limit: usize,
    ) -> Value {
        let nodes = self.cluster.others();
        let asked = nodes.iter().map(|node| timeout(WITHIN, self.ask(&node.address, uri, caller)));
        let answers = join_all(asked).await;
        let mut sessions = list["sessions"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let mut unreachable = Vec::new();
        for (node, answer) in nodes.iter().zip(answers) {
            let Ok(Some(mut answer)) = answer else {
                unreachable.push(Value::from(node.id.as_str()));
                continue;
            };
            sessions.append(&mut answer["sessions"].as_array_mut().map(std::mem::take).unwrap_or_default());
            if answer["truncated"] == true {
                list["truncated"] = true.into();
            }
        }
        let used = |session: &Value| session["last_used"].as_f64().unwrap_or_default();
        sessions.sort_by(|one, other| used(other).total_cmp(&used(one)));
        // A node that has lost a user without handing it over still has files of it: who used a session last has it.
        let mut listed = HashSet::new();
        sessions.retain(|session| listed.insert((session["user"].clone(), session["id"].clone())));
        if sessions.len() > limit {
            sessions.truncate(limit);
            list["truncated"] = true.into();
        }
        list["sessions"] = sessions.into();
        list["unreachable"] = unreachable.into();
        list
    }

    async fn ask(&self, address: &str, uri: &Uri, caller: &Caller) -> Option<Value> {
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (Method::GET, uri.clone());
        let (parts, ()): (Parts, ()) = request.into_parts();
        let to = (address, std::future::pending());
        let sent = self.forwarder.send(&self.peers, (&parts, Bytes::new()), caller, to, ErrorForm::Own).await;
        let response = sent.ok().filter(|response| response.status().is_success())?;
        let body: Body = response.into_body();
        let collected = Limited::new(body, MAX_BYTES).collect().await.ok()?;
        serde_json::from_slice(&collected.to_bytes()).ok()
    }
}
