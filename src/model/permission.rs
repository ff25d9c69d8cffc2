//! What waits for a person: tools that need a permission, questions of the model, questions of MCP servers. And the answers.

use std::time::SystemTime;

/// A request that waits for an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PermissionRequest {
    /// The CLI's id of the request.
    pub request_id: String,
    /// Which kind of answer it takes.
    pub kind: RequestKind,
    /// The tool; for [`RequestKind::Elicitation`] the name of the MCP server.
    pub tool_name: String,
    /// What the tool would be called with. For [`RequestKind::Question`] it has `questions`; for
    /// [`RequestKind::Elicitation`] it has `message`, `mode` (`form` or `url`), and `requested_schema` or `url`.
    pub input: serde_json::Value,
    /// What it would do, in words.
    pub description: Option<String>,
}

/// Kind of a request that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestKind {
    /// A tool needs a permission: [`Decision::Allow`] or [`Decision::Deny`].
    Tool,
    /// The model asks the user: [`Decision::Answer`], or [`Decision::Deny`].
    Question,
    /// An MCP server asks the user: [`Decision::Accept`], [`Decision::Decline`] or [`Decision::Cancel`].
    Elicitation,
}

/// A request that waits for an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PendingPermission {
    /// What is asked.
    pub request: PermissionRequest,
    /// Since when.
    pub created: SystemTime,
}

/// An answer that came for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionError {
    /// There is no such request.
    #[error("no such permission request in this session")]
    Unknown,
    /// It was answered, withdrawn or denied at its time limit before.
    #[error("the permission request is no longer open")]
    Late,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Decision {
    /// The tool may run, with other input if given.
    Allow {
        /// Replaces what the tool would have been called with.
        updated_input: Option<serde_json::Value>,
    },
    /// The tool may not run.
    Deny {
        /// Explanation for the model.
        message: String,
    },
    /// Answers to the model's questions.
    Answer {
        /// By the text of the question: labels of its options, or the user's own words.
        answers: serde_json::Map<String, serde_json::Value>,
    },
    /// The user gives what the MCP server asks for, or has agreed to open its address.
    Accept {
        /// As the server's schema describes it; none for an address.
        content: Option<serde_json::Value>,
    },
    /// The user refuses.
    Decline,
    /// The user has decided nothing.
    Cancel,
}
