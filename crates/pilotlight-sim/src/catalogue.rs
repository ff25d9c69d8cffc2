//! Fixed lists that claude reports about itself, shortened.

/// The simulated version of claude.
pub(crate) const VERSION: &str = "2.1.197";
/// Model without `--model`.
pub(crate) const DEFAULT_MODEL: &str = "claude-opus-4-8[1m]";

/// Tools in `init`.
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
/// Additional tool if the host can answer questions.
pub(crate) const ASKING_TOOL: &str = "AskUserQuestion";
pub(crate) const SLASH_COMMANDS: &[&str] =
    &["deep-research", "update-config", "verify", "compact", "context", "cost"];
pub(crate) const SKILLS: &[&str] = &["deep-research", "update-config", "verify"];
pub(crate) const AGENTS: &[&str] = &["claude", "Explore", "general-purpose", "Plan"];

/// `commands` in the answer to `initialize`.
pub(crate) const COMMANDS: &str = r#"[{"name":"deep-research","description":"Research with many sources (simulated).","argumentHint":""},{"name":"update-config","description":"Change the settings (simulated).","argumentHint":""},{"name":"verify","description":"Check a change (simulated).","argumentHint":""}]"#;
/// `agents` in the answer to `initialize`.
pub(crate) const AGENT_LIST: &str = r#"[{"name":"claude","description":"Catch-all agent (simulated)."},{"name":"Explore","description":"Read-only search agent (simulated).","model":"haiku"}]"#;
/// `models` in the answer to `initialize`.
pub(crate) const MODELS: &str = r#"[{"value":"default","resolvedModel":"claude-opus-4-8[1m]","displayName":"Default (recommended)","description":"The default model (simulated)","supportsEffort":true,"supportedEffortLevels":["low","medium","high","xhigh","max"],"supportsAdaptiveThinking":true,"supportsFastMode":true,"supportsAutoMode":true},{"value":"opus[1m]","resolvedModel":"claude-opus-4-8[1m]","displayName":"Opus","description":"Opus with a long context (simulated)","supportsEffort":true,"supportedEffortLevels":["low","medium","high","xhigh","max"],"supportsAdaptiveThinking":true,"supportsFastMode":true,"supportsAutoMode":true}]"#;
pub(crate) const OUTPUT_STYLES: &[&str] = &["default", "Proactive", "Explanatory", "Learning"];

/// The model's name in the API, without the suffix of the long context.
pub(crate) fn api_model(model: &str) -> &str {
    model.strip_suffix("[1m]").unwrap_or(model)
}
