//! The adapter for `claude` (stream-json over stdin and stdout).
