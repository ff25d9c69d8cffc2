//! The way of a turn from the handle, encoded and within all limits, into the mailbox of its session.

use std::future::ready;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use ractor::MessagingErr;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{LOOKUPS, Session};
use crate::adapter;
use crate::child::Job;
use crate::config::SlashCommands;
use crate::error::TurnError;
use crate::model::ids::TurnId;
use crate::model::{CallerTool, History, Prompt, Role, ToolResult, first_words, is_model_name};
use crate::session::import::{first_line, within};
use crate::session::{SessionMessage, env::Env, message::TurnSubmission, registry::Entry};
use crate::session::{past::PastTurn, shelf::SpareKind, status::Visible, store::SettingsRecord};
use crate::telemetry::metrics::{AdmissionRejected, FirstOutput, TurnOutcome};
use crate::turn::{Conversation, Earlier, Hold, Outcome, Status, Turn, TurnOptions, TurnTrace, turn_channel};

/// A longer history is encoded on a thread for blocking work: a megabyte takes some milliseconds.
const ENCODE_INLINE_BYTES: usize = 256 << 10;

impl Session {
    /// As [`Session::send_with`]. `hold` is kept as long as what the caller sent.
    pub(crate) async fn send_held(
        &self,
        prompt: Prompt,
        options: TurnOptions,
        hold: Option<Hold>,
    ) -> Result<Turn, TurnError> {
        let accepted = Instant::now();
        let of_caller = options.restrictions.as_ref().and_then(|restrictions| restrictions.usd_per_day);
        let encoding = encode(self.env(), prompt, options, hold);
        let result = self.submit(of_caller, encoding, accepted).await;
        self.count_refusal(&result, accepted);
        result
    }

    /// As [`Session::send_with`], unless another turn has come after `turn`, or another conversation began: then the turn ends
    /// with [`TurnError::Overtaken`].
    #[cfg(feature = "server")]
    pub(crate) async fn send_after(
        &self,
        turn: TurnId,
        prompt: Prompt,
        options: TurnOptions,
    ) -> Result<Turn, TurnError> {
        let accepted = Instant::now();
        let of_caller = options.restrictions.as_ref().and_then(|restrictions| restrictions.usd_per_day);
        let encoding = async {
            let encoded = encode(self.env(), prompt, options, None).await?;
            Ok(EncodedTurn { follows: Some(turn), ..encoded })
        };
        let result = self.submit(of_caller, encoding, accepted).await;
        self.count_refusal(&result, accepted);
        result
    }

    /// Gives the session a turn that is no user's message.
    pub(super) async fn send_encoded(&self, encoded: EncodedTurn) -> Result<Turn, TurnError> {
        let (accepted, of_caller) = (Instant::now(), encoded.settings.restrictions.usd_per_day);
        let result = self.submit(of_caller, ready(Ok(encoded)), accepted).await;
        self.count_refusal(&result, accepted);
        result
    }

    fn count_refusal(&self, result: &Result<Turn, TurnError>, accepted: Instant) {
        if let Err(error) = &result {
            let telemetry = &self.env().telemetry;
            if matches!(
                error,
                TurnError::QueueFull { .. }
                    | TurnError::TooManySessions { .. }
                    | TurnError::SpendLimit { .. }
            ) {
                telemetry.metrics.admission_rejected.increment(AdmissionRejected::PerUser);
            }
            telemetry.turn_refused(self.key.as_ref().ok(), error, accepted.elapsed());
        }
    }

    /// `of_caller`: what the caller may spend in a day, beside the user's own limit.
    async fn submit(
        &self,
        of_caller: Option<f64>,
        encoding: impl Future<Output = Result<EncodedTurn, TurnError>>,
        accepted: Instant,
    ) -> Result<Turn, TurnError> {
        let key = self.key()?;
        let allowed = self.env().spend.check(key.user(), of_caller).await;
        if let Err(spent) = allowed.map_err(|error| TurnError::Storage(error.into()))? {
            return Err(TurnError::SpendLimit { limit_usd: spent.limit_usd, retry_after: spent.resets_in });
        }
        let encoded = encoding.await?;
        #[cfg(feature = "cluster")]
        let stay = self.sessions().stay(key.user()).await?;
        #[cfg(not(feature = "cluster"))]
        let stay = Alone;
        for _ in 0..LOOKUPS {
            if self.sessions().is_draining() {
                self.env().telemetry.metrics.admission_rejected.increment(AdmissionRejected::Draining);
                return Err(TurnError::Draining);
            }
            let Some((entry, permit)) = self.sessions().registry.admit(key)? else {
                let brings_history = matches!(encoded.earlier, Some(Earlier::Conversation(_)));
                let wish = SpareKind::wanted(&self.env().config.cli, &encoded.settings, brings_history);
                self.bring_into_memory(key, wish).await?;
                continue;
            };
            if let Some(turn) = self.post(&entry, (permit, stay.clone()), encoded.clone(), accepted)? {
                return Ok(turn);
            }
        }
        Err(TurnError::Internal("the session's actor keeps failing"))
    }

    /// Sends the turn to the session's actor; `None` if the actor has ended.
    fn post(
        &self,
        entry: &Arc<Entry>,
        (permit, stay): (OwnedSemaphorePermit, Stay),
        encoded: EncodedTurn,
        accepted: Instant,
    ) -> Result<Option<Turn>, TurnError> {
        let sessions = self.sessions();
        let is_warm = entry.status.read(Visible::is_warm);
        if !is_warm {
            sessions.admission.check_memory()?;
        }
        let id = sessions.next_turn();
        let limits = &sessions.env.config.session;
        let (telemetry, running) = (sessions.env.telemetry.clone(), sessions.open_turns.token());
        let key = entry.key.clone();
        let trace = TurnTrace::begin(&entry.hash, id, is_warm, accepted);
        let (traced, passed, accepted_at) = (trace.clone(), entry.clone(), SystemTime::now());
        let on_end = Box::new(move |outcome: &Outcome| {
            traced.ended(outcome);
            let (status, took) = (&outcome.status, accepted.elapsed());
            let (given_after, first_after) = traced.marks();
            let (tools, tools_left_out) = traced.take_tools();
            let label = TurnOutcome::from(status);
            passed.status.turn_passed(PastTurn {
                accepted_at,
                given_after,
                first_after,
                took,
                outcome: label.as_str(),
                error: match status {
                    Status::Completed => None,
                    Status::Failed(failure) => Some(failure.kind.clone()),
                    Status::Aborted(error) => Some(error.code().to_owned()),
                },
                cost_usd: outcome.cost_usd,
                tools,
                tools_left_out,
            });
            telemetry.turn_ended(&key, label, status.error(), took);
            drop((permit, running, stay));
        });
        let actor = entry.actor.clone();
        let cancel = Arc::new(move || drop(actor.cast(SessionMessage::Cancel(id))));
        let (events, bytes) = (limits.event_buffer, limits.event_buffer_bytes);
        let (sender, turn) = turn_channel(id, events, bytes, cancel, on_end);
        sender.show_to(entry.live.clone());
        let job = Box::new(Job {
            turn: id,
            sender: Some(sender),
            line: encoded.line,
            earlier: encoded.earlier,
            hold: encoded.hold,
            accepted,
            start: if is_warm { FirstOutput::Warm } else { FirstOutput::Cold },
            retries: 0,
            context_lost: false,
            trace,
            results: encoded.results,
        });
        let EncodedTurn { settings, follows, title, .. } = encoded;
        let submission = Box::new(TurnSubmission { job, settings, attachment: None, follows, title });
        let Err(refused) = entry.actor.cast(SessionMessage::Submit(submission)) else {
            return Ok(Some(turn));
        };
        // This turn goes to the next actor as a new one: here it has had no end.
        if let MessagingErr::SendErr(SessionMessage::Submit(mut unsent)) = refused
            && let Some(sender) = unsent.job.sender.take()
        {
            sender.disown();
        }
        drop(sessions.registry.forget_actor(entry.actor.get_id()));
        Ok(None)
    }
}

/// Checks and encodes a turn.
async fn encode(
    env: &Arc<Env>,
    prompt: Prompt,
    options: TurnOptions,
    hold: Option<Hold>,
) -> Result<EncodedTurn, TurnError> {
    let is_long = options.history.as_ref().is_some_and(|history| history.bytes() > ENCODE_INLINE_BYTES);
    if !is_long {
        return EncodedTurn::encode(env, prompt, options, hold);
    }
    let env = env.clone();
    let encoded = tokio::task::spawn_blocking(move || EncodedTurn::encode(&env, prompt, options, hold));
    encoded.await.map_err(|_| TurnError::Internal("a turn could not be written"))?
}

/// Keeps the user on this node of a cluster.
#[cfg(feature = "cluster")]
type Stay = Option<crate::cluster::Grant>;
#[cfg(not(feature = "cluster"))]
type Stay = Alone;

/// There is no other node.
#[cfg(not(feature = "cluster"))]
#[derive(Clone)]
pub(super) struct Alone;

/// A turn as it was asked for, serialised and checked.
#[derive(Clone)]
pub(super) struct EncodedTurn {
    line: Bytes,
    /// For a conversation without context.
    earlier: Option<Earlier>,
    hold: Option<Hold>,
    settings: SettingsRecord,
    results: Arc<[ToolResult]>,
    /// See [`TurnSubmission::follows`].
    follows: Option<TurnId>,
    /// See [`TurnSubmission::title`].
    title: Option<String>,
}

impl EncodedTurn {
    /// A message of the host itself.
    pub(super) fn plain(line: Bytes, options: TurnOptions) -> Self {
        let settings = SettingsRecord {
            model: options.model,
            fallback_model: options.fallback_model,
            restrictions: options.restrictions.unwrap_or_default(),
            ..SettingsRecord::default()
        };
        Self {
            line,
            earlier: None,
            hold: None,
            settings,
            results: Arc::default(),
            follows: None,
            title: None,
        }
    }

    fn encode(
        env: &Env,
        prompt: Prompt,
        options: TurnOptions,
        hold: Option<Hold>,
    ) -> Result<Self, TurnError> {
        let config = env.current();
        let limit = config.session.history_limit;
        let bytes = options.history.as_ref().map_or(0, History::bytes);
        if bytes > limit {
            return Err(TurnError::HistoryTooLarge { bytes, limit });
        }
        let limit = config.session.system_prompt_limit;
        let bytes = options.system_prompt.as_ref().map_or(0, String::len);
        if bytes > limit {
            return Err(TurnError::SystemPromptTooLarge { bytes, limit });
        }
        check_tools(&options, config.session.tools_limit)?;
        let commands = match (config.cli.slash_commands, &options.restrictions) {
            // A command could choose another model.
            (SlashCommands::Pass, Some(_)) => SlashCommands::Text,
            (commands, _) => commands,
        };
        let title = first_words(&prompt, options.history.as_ref());
        let line = within(adapter::encode_turn(&prompt, commands)?, config.session.prompt_limit)?;
        for (option, name) in [("model", &options.model), ("fallback_model", &options.fallback_model)] {
            // The empty name takes a former fallback back.
            let is_name = |name: &str| is_model_name(name) || (option == "fallback_model" && name.is_empty());
            if name.as_deref().is_some_and(|name| !is_name(name)) {
                return Err(TurnError::InvalidModel { option });
            }
        }
        let servers = options.mcp_servers.as_ref();
        if let Some(problem) = servers.and_then(|servers| servers.problem(&config.mcp)) {
            return Err(TurnError::InvalidMcpServers(problem));
        }
        // The tools of that server run without permission.
        if servers.is_some_and(|servers| servers.has(adapter::CALLER_SERVER)) {
            let problem = "the name \"caller\" belongs to the caller's own tools";
            return Err(TurnError::InvalidMcpServers(problem));
        }
        let settings = SettingsRecord {
            model: options.model,
            system_prompt: options.system_prompt,
            fallback_model: options.fallback_model,
            mcp_servers: options.mcp_servers,
            // Set by the session's actor.
            own_credentials: false,
            restrictions: options.restrictions.unwrap_or_default(),
            caller_tools: options.tools.into(),
            output_schema: options.output_schema,
        };
        let (prompt, results) = match prompt {
            // A conversation that begins with the results of its history has nothing else to say.
            Prompt::ToolResults(results) => (Prompt::Text(adapter::CONTINUATION.to_owned()), results.into()),
            prompt => (prompt, Arc::default()),
        };
        let history = options.history.filter(|history| !history.is_empty());
        let history = history.map(|history| adapter::as_called(history, &settings.caller_tools));
        let earlier = history.map(|history| {
            let conversation = Conversation { history, prompt, commands };
            if conversation.history.messages().iter().any(|message| message.role == Role::Assistant) {
                Earlier::Conversation(Arc::new(conversation))
            } else {
                Earlier::Unanswered(first_line(env, &conversation, false))
            }
        });
        Ok(Self { line, earlier, hold, settings, results, follows: None, title })
    }
}

/// Checks the size of the caller's tools and of the schema of the answer, and that tools have different names.
fn check_tools(options: &TurnOptions, limit: usize) -> Result<(), TurnError> {
    let length = |json: serde_json::Result<String>| json.map_or(usize::MAX, |text| text.len());
    let within = |what, bytes| match bytes > limit {
        true => Err(TurnError::ToolsTooLarge { what, bytes, limit }),
        false => Ok(()),
    };
    if !options.tools.is_empty() {
        within("list of tools", length(serde_json::to_string(&options.tools)))?;
        let names: std::collections::HashSet<&str> = options.tools.iter().map(CallerTool::name).collect();
        if names.len() < options.tools.len() {
            return Err(TurnError::InvalidTools("two tools have the same name"));
        }
    }
    if let Some(schema) = &options.output_schema {
        within("schema of the answer", length(serde_json::to_string(schema)))?;
        if !schema.is_object() {
            return Err(TurnError::InvalidTools("the schema of the answer must be an object"));
        }
    }
    Ok(())
}
