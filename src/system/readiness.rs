//! Whether a system takes turns.

use crate::admission::Pressure;
use crate::session::sessions::Sessions;

/// Whether turns can be taken, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// All is well.
    pub ready: bool,
    /// What is not, in words; empty when ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// The readiness for a turn of a new user.
    pub(super) fn of(sessions: &Sessions) -> Self {
        let mut reasons = Vec::new();
        if sessions.is_draining() {
            reasons.push("stopping".to_owned());
        }
        if sessions.admission.pressure() >= Pressure::NoNewChildren {
            reasons.push("no memory is left for another child (limits.memory_budget)".to_owned());
        }
        if sessions.admission.is_full() && sessions.admission.wants_room() {
            reasons.push("as many children live as may (limits.max_children)".to_owned());
        }
        if let Some(problem) = sessions.storage.problem() {
            reasons.push(format!("nothing can be written to the data directory (data_dir): {problem}"));
        }
        Readiness { ready: reasons.is_empty(), reasons }
    }
}
