//! What the clients know: every turn they sent and what became of it, and the rules that follow. Pure: its input is what
//! happened and says which rule was broken.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::conversation::Conversation;
use crate::plan::{Kind, Reader, USERS};
use crate::wire::{Ended, Fate, Nonce, Report, nonces};

/// Turns of one user that are accepted at once: one runs, eight wait.
const PLACES: usize = 9;

/// Turns of one user that a failure shows.
const SHOWN: usize = 20;

/// One turn that was sent and has not ended.
#[derive(Debug)]
struct Sent {
    user: usize,
    kind: Kind,
    reader: Reader,
    /// Nothing has happened to the user that could cost this turn its answer.
    calm: bool,
    /// As many as may were under way already.
    crowded: bool,
    /// The journal was damaged, and this is not the first turn since: a kill may have cost the one before.
    may_lose: bool,
    /// On disk when the turn was sent: whatever happens, the conversation has them.
    durable: BTreeSet<u64>,
}

/// How turns ended, by kind of end.
pub type Tally = BTreeMap<String, u64>;

/// What the server that runs now was asked for, and how its turns ended.
#[derive(Debug, Default)]
pub struct Asked {
    pub turns: u64,
    completed: u64,
    dropped: u64,
    pub evictions: u64,
    pub panics: u64,
}

/// See the module.
#[derive(Default)]
pub struct Model {
    under_way: HashMap<u64, Sent>,
    conversations: Vec<Conversation>,
    /// How the latest turns of each user ended.
    latest: HashMap<usize, VecDeque<String>>,
    next: u64,
    pub tally: Tally,
    /// Of the server that runs now.
    pub asked: Asked,
    pub losses_reported: u64,
    pub recalled: u64,
}

impl Model {
    pub fn new() -> Self {
        Self { conversations: (0..USERS).map(|_| Conversation::default()).collect(), ..Self::default() }
    }

    /// A turn is about to be sent: its number. `shaky`: what was done to the user before may hit this turn or the next.
    pub fn send(&mut self, user: usize, kind: &Kind, reader: Reader, shaky: bool) -> u64 {
        self.next += 1;
        let number = self.next;
        let talk = &mut self.conversations[user];
        talk.sent.insert(number);
        talk.under_way += 1;
        if shaky {
            talk.disturbed_at = Some(number);
        }
        let calm = talk.disturbed_at.is_none();
        if kind.disturbs() {
            disturb(&mut self.under_way, talk, user, number);
        }
        let sent = Sent {
            user,
            kind: kind.clone(),
            reader,
            calm: calm && !matches!(kind, Kind::Breaks(_)),
            crowded: talk.under_way > PLACES,
            may_lose: talk.may_lose(number),
            durable: talk.durable.clone(),
        };
        self.asked.turns += 1;
        self.under_way.insert(number, sent);
        number
    }

    /// Something was done to a user that may cost it turns under way, or the next one.
    pub fn disturb(&mut self, user: usize) {
        disturb(&mut self.under_way, &mut self.conversations[user], user, self.next);
    }

    pub fn disturb_all(&mut self) {
        (0..USERS).for_each(|user| self.disturb(user));
    }

    /// These turns of the user are in the transcript.
    pub fn written_down(&mut self, user: usize, numbers: impl IntoIterator<Item = u64>) {
        let talk = &mut self.conversations[user];
        let counts = |it: &u64| *it > talk.transcript_damaged_at || talk.answered.contains(it);
        talk.durable.extend(numbers.into_iter().filter(counts));
    }

    /// One of the two files of a conversation was damaged, while none of its turns was under way.
    pub fn damaged(&mut self, user: usize, is_journal: bool) {
        let talk = &mut self.conversations[user];
        if is_journal {
            talk.journal_damaged_at = Some(self.next);
        } else {
            talk.transcript_damaged_at = self.next;
            talk.durable = &talk.durable & &talk.answered;
        }
    }

    /// The journal holds all that it has to.
    pub fn has_journal(&self, user: usize) -> bool {
        self.conversations[user].journal_damaged_at.is_none()
    }

    /// The journal has been begun again. It counts from the next answer on: until then only the transcript knows how far
    /// the conversation has come.
    pub fn journal_is_whole(&mut self, user: usize) {
        let talk = &mut self.conversations[user];
        let is_confirmed = talk.answered.last() > talk.journal_damaged_at.as_ref();
        talk.journal_damaged_at.take_if(|_| is_confirmed && talk.under_way == 0);
    }

    /// Whether all answered turns are among these.
    pub fn has_all_of(&self, user: usize, written: &BTreeSet<u64>) -> bool {
        self.conversations[user].answered.is_subset(written)
    }

    /// The user was forgotten. Only when none of its turns is under way.
    pub fn forget(&mut self, user: usize) {
        self.conversations[user] = Conversation::default();
        self.latest.remove(&user);
    }

    pub fn is_quiet(&self, user: usize) -> bool {
        self.conversations[user].under_way == 0
    }

    pub fn under_way(&self) -> Vec<u64> {
        let mut numbers: Vec<_> = self.under_way.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// For messages.
    pub fn describe(&self, number: u64) -> String {
        match self.under_way.get(&number) {
            Some(sent) => format!("~{}.{number}~ {:?} {:?}", sent.user, sent.kind, sent.reader),
            None => format!("{number}"),
        }
    }

    /// The server was killed: the ends of these turns will not be seen.
    pub fn cut(&mut self) -> u64 {
        let mut cut: Vec<_> = self.under_way.drain().collect();
        cut.sort_unstable_by_key(|(number, _)| *number);
        for (number, sent) in &cut {
            let talk = &mut self.conversations[sent.user];
            talk.under_way -= 1;
            talk.reported.extend(Some(*number).filter(|_| sent.may_lose));
        }
        cut.iter().for_each(|(number, sent)| self.note(sent, *number, "cut off by the server's death"));
        *self.tally.entry("cut off by the server's death".into()).or_default() += cut.len() as u64;
        cut.len() as u64
    }

    pub fn refused(&mut self, number: u64, code: &str) -> Result<(), String> {
        let sent = self.end(number)?;
        self.note(&sent, number, &format!("refused: {code}"));
        *self.tally.entry(format!("refused: {code}")).or_default() += 1;
        let allowed = match code {
            "queue_full" => sent.crowded,
            _ => !sent.calm,
        };
        if allowed {
            Ok(())
        } else {
            Err(format!("~{}.{number}~ was refused without a cause: {code}", sent.user))
        }
    }

    pub fn ended(&mut self, ended: &Ended) -> Result<(), String> {
        let sent = self.end(ended.number)?;
        let user = sent.user;
        self.note(&sent, ended.number, &fate_name(ended));
        self.judge(sent, ended).and_then(|()| self.are_reported(user)).map_err(|what| {
            let latest = self.latest.entry(user).or_default().make_contiguous().join("\n  ");
            format!("{what}\nthe last turns of user {user}:\n  {latest}")
        })
    }

    fn are_reported(&mut self, user: usize) -> Result<(), String> {
        let awaited = self.under_way.iter().filter(|(_, sent)| sent.user == user).map(|(number, _)| *number);
        self.conversations[user].losses_were_reported(awaited).map_err(|what| format!("user {user}: {what}"))
    }

    fn note(&mut self, sent: &Sent, number: u64, end: &str) {
        let latest = self.latest.entry(sent.user).or_default();
        if latest.len() >= SHOWN {
            latest.pop_front();
        }
        latest.push_back(format!("{number}: {:?} {:?}: {end}", sent.kind, sent.reader));
    }

    fn judge(&mut self, sent: Sent, ended: &Ended) -> Result<(), String> {
        let nonce = Nonce { user: sent.user, number: ended.number };
        let wrong = |what: &str| Err(format!("{nonce} {:?} {:?}: {what}; {ended:?}", sent.kind, sent.reader));
        *self.tally.entry(fate_name(ended)).or_default() += 1;
        if let Some(irregular) = &ended.irregular {
            return wrong(irregular);
        }
        self.asked.completed += u64::from(ended.fate == Fate::Completed);
        self.asked.dropped += u64::from(ended.fate == Fate::Dropped);
        self.losses_reported += u64::from(ended.loss_reported);
        let talk = &mut self.conversations[sent.user];
        if ended.loss_reported && !sent.may_lose {
            return wrong("a loss is reported, and at most one of transcript and journal was damaged");
        }
        if sent.may_lose && (ended.loss_reported || (ended.fate == Fate::Dropped && ended.events == 0)) {
            // Who drops a turn unread hears nothing; the loss was said all the same.
            talk.reported.insert(ended.number);
        }
        let strangers =
            |seen: &Nonce| seen.user != sent.user || (*seen != nonce && sent.kind != Kind::Recall);
        if let Some(stranger) = ended.nonces.iter().find(|seen| strangers(seen)) {
            return wrong(&format!("it was shown {stranger}"));
        }
        if sent.calm {
            // Without a journal a child that dies takes along what it has not written down yet.
            if ended.loss_reported && sent.kind != Kind::DiesOnce {
                return wrong("a loss is reported without a cause");
            }
            let expected = match (&sent.kind, sent.reader) {
                (_, Reader::Drops(_)) => return Ok(()),
                (Kind::Refused(_), _) => Fate::Failed,
                _ => Fate::Completed,
            };
            if ended.fate != expected {
                return wrong("nothing was done to it");
            }
            if ended.retries != u32::from(sent.kind == Kind::DiesOnce) {
                return wrong("tried again without a cause, or not tried again");
            }
        }
        if ended.fate != Fate::Completed {
            return Ok(());
        }
        let mut answer = nonces(&ended.text);
        if answer.first() != Some(&nonce) {
            return wrong("not its own answer");
        }
        if talk.disturbed_at.is_some_and(|at| at < ended.number) {
            talk.disturbed_at = None;
        }
        if sent.kind == Kind::Recall {
            self.recalled += 1;
            let recalled: Vec<u64> = answer.drain(..).skip(1).map(|it| it.number).collect();
            talk.remembers(ended.number, &recalled, &sent.durable).or_else(|what| wrong(&what))?;
        }
        talk.answered.insert(ended.number);
        Ok(())
    }

    /// Another server runs: its metrics begin at zero.
    pub fn new_server(&mut self) {
        self.disturb_all();
        self.asked = Asked::default();
    }

    /// At rest the server's metrics are those of its clients.
    pub fn compare(&self, report: &Report) -> Result<(), String> {
        let turns = report.sum("turns_total", "");
        let Asked { completed, dropped, evictions, panics, .. } = self.asked;
        if turns != self.asked.turns {
            return Err(format!("turns_total says {turns}, {} were sent", self.asked.turns));
        }
        // Of a turn that was dropped only the server knows whether it had been answered.
        let ok = report.sum("turns_total", "outcome=ok");
        if ok < completed || ok > completed + dropped {
            return Err(format!("{ok} turns are counted as answered, {completed} were, {dropped} dropped"));
        }
        for (name, label, most) in
            [("evictions_total", "reason=admin", evictions), ("actor_panics_total", "", panics)]
        {
            let counted = report.sum(name, label);
            if counted > most {
                return Err(format!("{name} says {counted}, {most} were asked for"));
            }
        }
        let (sessions, listed) = (report.gauge("sessions"), report.sessions);
        if sessions != listed as f64 {
            return Err(format!("the gauge counts {sessions} sessions, there are {listed}"));
        }
        for gauge in ["starts_in_flight", "admission_queue_length"] {
            if report.gauge(gauge) != 0.0 {
                return Err(format!("{gauge} is {} at rest", report.gauge(gauge)));
            }
        }
        let (ready, exits) = (report.sum("spawns_total", "outcome=ok"), report.sum("exits_total", ""));
        if ready > exits {
            return Err(format!("{ready} children became ready, {exits} are gone, and none is there"));
        }
        Ok(())
    }

    fn end(&mut self, number: u64) -> Result<Sent, String> {
        let sent = self.under_way.remove(&number).ok_or(format!("turn {number} ended twice"))?;
        self.conversations[sent.user].under_way -= 1;
        Ok(sent)
    }
}

fn disturb(under_way: &mut HashMap<u64, Sent>, talk: &mut Conversation, user: usize, number: u64) {
    talk.disturbed_at = Some(number);
    under_way.values_mut().filter(|sent| sent.user == user).for_each(|sent| sent.calm = false);
}

fn fate_name(ended: &Ended) -> String {
    match &ended.fate {
        Fate::Completed => "answered".to_owned(),
        Fate::Failed => "ended with an error of the CLI".to_owned(),
        Fate::Aborted { code, .. } => format!("ended: {code}"),
        Fate::Dropped => "dropped by the reader".to_owned(),
    }
}
