//! Tools that wait for permission. Pure; every request is answered: by the caller, at the time limit, or not
//! at all because the CLI withdrew it.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::PermissionPolicy;
use crate::model::{Decision, PendingPermission, PermissionError, PermissionRequest, RequestKind};

/// Remembered requests that are over: a late answer differs from a wrong one.
const REMEMBERED: usize = 64;

/// Maximum number of tools of one turn that wait at once. More than a person can answer are denied.
const MOST_OPEN: usize = 64;

/// Maximum questions of MCP servers in one turn that a person sees. A server can ask again and again.
const MOST_ELICITATIONS: usize = 32;

#[derive(Debug)]
pub(crate) struct Permissions {
    limit: Duration,
    open: Vec<(PendingPermission, Instant)>,
    over: VecDeque<String>,
    /// Those of the present turn.
    elicitations: usize,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) request_id: String,
    pub(crate) decision: Decision,
    pub(crate) reply: oneshot::Sender<Result<(), PermissionError>>,
}

impl Permissions {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, open: Vec::new(), over: VecDeque::new(), elicitations: 0 }
    }

    /// What a policy answers without asking anybody. No policy has an answer to a question.
    pub(crate) fn standing(policy: PermissionPolicy, kind: RequestKind) -> Decision {
        match (kind, policy) {
            (RequestKind::Elicitation, _) => Decision::Cancel,
            (RequestKind::Question, _) => Decision::Deny {
                message: "nobody is there to answer: decide for yourself, or ask at the end of your answer"
                    .to_owned(),
            },
            (RequestKind::Tool, PermissionPolicy::Allow) => Decision::Allow { updated_input: None },
            (RequestKind::Tool, PermissionPolicy::Deny) => {
                Decision::Deny { message: "tools are not permitted here".to_owned() }
            }
            (RequestKind::Tool, PermissionPolicy::Ask) => {
                Decision::Deny { message: "nobody is there to permit it".to_owned() }
            }
        }
    }

    pub(crate) fn have_room(&self, kind: RequestKind) -> bool {
        let is_one_more = kind == RequestKind::Elicitation && self.elicitations >= MOST_ELICITATIONS;
        self.open.len() < MOST_OPEN && !is_one_more
    }

    pub(crate) fn ask(&mut self, request: PermissionRequest, now: Instant, created: SystemTime) {
        self.elicitations += usize::from(request.kind == RequestKind::Elicitation);
        let pending = PendingPermission { request, created };
        self.open.push((pending, now + self.limit));
    }

    pub(crate) fn pending(&self) -> Vec<PendingPermission> {
        self.open.iter().map(|(pending, _)| pending.clone()).collect()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.open.iter().map(|(_, deadline)| *deadline).min()
    }

    /// Takes out the request that the answer is for, and replies whether the answer came in time.
    pub(crate) fn answer(&mut self, answer: Answer) -> Option<(PermissionRequest, Decision)> {
        let taken = self.take(&answer.request_id);
        let result = match taken {
            Some(_) => Ok(()),
            None if self.over.contains(&answer.request_id) => Err(PermissionError::Late),
            None => Err(PermissionError::Unknown),
        };
        // The caller may have stopped waiting; the decision counts all the same.
        answer.reply.send(result).ok();
        taken.map(|request| (request, answer.decision))
    }

    /// Withdraws a request that the CLI cancelled. Returns whether it was open.
    pub(crate) fn withdraw(&mut self, request_id: &str) -> bool {
        self.take(request_id).is_some()
    }

    /// Requests without an answer in time, denied or cancelled.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<(PermissionRequest, Decision)> {
        let overdue: Vec<String> = self
            .open
            .iter()
            .filter(|(_, deadline)| *deadline <= now)
            .map(|(pending, _)| pending.request.request_id.clone())
            .collect();
        let decision = |kind| match kind {
            RequestKind::Elicitation => Decision::Cancel,
            RequestKind::Question => Decision::Deny { message: "nobody answered in time".to_owned() },
            RequestKind::Tool => Decision::Deny { message: "nobody permitted it in time".to_owned() },
        };
        let taken = overdue.iter().filter_map(|id| self.take(id));
        taken
            .map(|request| (request.kind, request))
            .map(|(kind, request)| (request, decision(kind)))
            .collect()
    }

    /// The turn is over. Whether anything was open.
    pub(crate) fn clear(&mut self) -> bool {
        self.elicitations = 0;
        let open: Vec<String> =
            self.open.iter().map(|(pending, _)| pending.request.request_id.clone()).collect();
        open.iter().filter_map(|id| self.take(id)).count() > 0
    }

    fn take(&mut self, request_id: &str) -> Option<PermissionRequest> {
        let index = self.open.iter().position(|(pending, _)| pending.request.request_id == request_id)?;
        let (pending, _) = self.open.swap_remove(index);
        if self.over.len() == REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back(pending.request.request_id.clone());
        Some(pending.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> PermissionRequest {
        let input = serde_json::json!({});
        PermissionRequest {
            request_id: id.into(),
            kind: RequestKind::Tool,
            tool_name: "Bash".into(),
            input,
            description: None,
        }
    }

    fn answer(permissions: &mut Permissions, id: &str) -> Result<(), PermissionError> {
        let (reply, mut answered) = oneshot::channel();
        let decision = Decision::Allow { updated_input: None };
        let taken = permissions.answer(Answer { request_id: id.into(), decision, reply });
        let result = answered.try_recv().unwrap();
        assert_eq!(taken.is_some(), result.is_ok());
        result
    }

    #[test]
    fn server_that_asks_without_end_is_not_shown() {
        let mut permissions = Permissions::new(Duration::from_secs(5));
        let now = Instant::now();
        for number in 0..MOST_ELICITATIONS {
            assert!(permissions.have_room(RequestKind::Elicitation));
            let id = number.to_string();
            let request = PermissionRequest { kind: RequestKind::Elicitation, ..request(&id) };
            permissions.ask(request, now, SystemTime::now());
            answer(&mut permissions, &id).unwrap();
        }
        assert!(!permissions.have_room(RequestKind::Elicitation) && permissions.have_room(RequestKind::Tool));
        assert_eq!(
            Permissions::standing(PermissionPolicy::Allow, RequestKind::Elicitation),
            Decision::Cancel
        );
        permissions.clear();
        assert!(permissions.have_room(RequestKind::Elicitation), "the next turn");
    }

    #[test]
    fn each_request_is_answered_once() {
        let now = Instant::now();
        let mut permissions = Permissions::new(Duration::from_secs(5));
        for id in ["a", "b", "c", "d"] {
            permissions.ask(request(id), now, SystemTime::now());
        }
        assert_eq!(answer(&mut permissions, "a"), Ok(()));
        assert_eq!(answer(&mut permissions, "a"), Err(PermissionError::Late));
        assert_eq!(answer(&mut permissions, "z"), Err(PermissionError::Unknown));
        assert!(permissions.withdraw("b"));
        assert_eq!(answer(&mut permissions, "b"), Err(PermissionError::Late));
        assert!(permissions.overdue(now).is_empty());
        let denied = permissions.overdue(now + Duration::from_secs(5));
        assert_eq!(denied.len(), 2);
        assert!(denied.iter().all(|(_, decision)| matches!(decision, Decision::Deny { .. })));
        assert_eq!(permissions.deadline(), None);
        permissions.ask(request("e"), now, SystemTime::now());
        assert!(permissions.clear() && !permissions.clear());
        assert_eq!(answer(&mut permissions, "e"), Err(PermissionError::Late));
    }
}
