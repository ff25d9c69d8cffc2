//! Requests of tools for permission, and the answers to them.

use std::time::SystemTime;

/// A tool that waits for permission.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PermissionRequest {
    /// The CLI's id of the request.
    pub request_id: String,
    /// The tool.
    pub tool_name: String,
    /// What it would be called with.
    pub input: serde_json::Value,
    /// What it would do, in words.
    pub description: Option<String>,
}

/// A tool that waits for permission.
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

/// The answer to a tool that waits for permission.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Decision {
    /// It may run, with other input if given.
    Allow {
        /// Replaces what the tool would have been called with.
        updated_input: Option<serde_json::Value>,
    },
    /// It may not.
    Deny {
        /// Explanation for the model.
        message: String,
    },
}
