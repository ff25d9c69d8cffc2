//! The fixed lists that the real CLI tells about itself, cut to a plausible length.

/// The version whose behaviour this is.
pub(crate) const VERSION: &str = "2.1.197";
/// What answers when nobody names a model.
pub(crate) const DEFAULT_MODEL: &str = "claude-opus-4-8[1m]";

/// Tools of `init`.
pub(crate) const TOOLS: &[&str] = &[
    "Task",
    "Bash",
    "CronCreate",
    "CronDelete",
    "CronList",
    "Edit",
    "EnterPlanMode",
    "ExitPlanMode",
    "Monitor",
    "NotebookEdit",
    "Read",
    "Skill",
    "TaskCreate",
    "TaskGet",
    "TaskList",
    "TaskOutput",
    "TaskStop",
    "TaskUpdate",
    "ToolSearch",
    "WebFetch",
    "WebSearch",
    "Workflow",
    "Write",
];
/// One more when the host can be asked.
pub(crate) const ASKING_TOOL: &str = "AskUserQuestion";
pub(crate) const SLASH_COMMANDS: &[&str] =
    &["deep-research", "update-config", "verify", "compact", "context", "cost"];
pub(crate) const SKILLS: &[&str] = &["deep-research", "update-config", "verify"];
pub(crate) const AGENTS: &[&str] = &["claude", "Explore", "general-purpose", "Plan"];

/// `commands` of the `initialize` answer.
pub(crate) const COMMANDS: &str = r#"[{"name":"deep-research","description":"Research with many sources (simulated).","argumentHint":""},{"name":"update-config","description":"Change the settings (simulated).","argumentHint":""},{"name":"verify","description":"Check a change (simulated).","argumentHint":""}]"#;
/// `agents` of the `initialize` answer.
pub(crate) const AGENT_LIST: &str = r#"[{"name":"claude","description":"Catch-all agent (simulated)."},{"name":"Explore","description":"Read-only search agent (simulated).","model":"haiku"}]"#;
/// `models` of the `initialize` answer.
pub(crate) const MODELS: &str = r#"[{"value":"default","resolvedModel":"claude-opus-4-8[1m]","displayName":"Default (recommended)","description":"The default model (simulated)","supportsEffort":true,"supportedEffortLevels":["low","medium","high","xhigh","max"],"supportsAdaptiveThinking":true,"supportsFastMode":true,"supportsAutoMode":true},{"value":"opus[1m]","resolvedModel":"claude-opus-4-8[1m]","displayName":"Opus","description":"Opus with a long context (simulated)","supportsEffort":true,"supportedEffortLevels":["low","medium","high","xhigh","max"],"supportsAdaptiveThinking":true,"supportsFastMode":true,"supportsAutoMode":true}]"#;
pub(crate) const OUTPUT_STYLES: &[&str] = &["default", "Proactive", "Explanatory", "Learning"];

/// The model's name as the API knows it, without the mark of the long context.
pub(crate) fn api_model(model: &str) -> &str {
    model.strip_suffix("[1m]").unwrap_or(model)
}
