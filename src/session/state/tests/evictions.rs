//! Fault 42: a turn that comes in the very instant of an eviction. Not a sample: every order of what can happen.

use super::*;

/// What can happen next. A child needs several steps of its own to come and to go, so that everything else can come
/// between any two of them.
const STEPS: [Step; 4] = [Step::Submit, Step::EvictIfIdle, Step::Evict, Step::ChildGoesOn];
/// 4 to the power of this: 16 384 orders.
const LENGTH: u32 = 7;

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit,
    EvictIfIdle,
    Evict,
    ChildGoesOn,
}

/// A child that follows each request, one step at a time.
#[derive(Debug, Clone, Copy)]
enum Child {
    None,
    Starting(Generation),
    Waiting(Generation),
    Working(Generation, TurnId),
    Leaving(Generation),
}

struct Play {
    bench: Bench,
    child: Child,
    sent: u64,
    answered: Vec<u64>,
}

impl Play {
    fn take(&mut self, step: Step) {
        let input = match (step, self.child) {
            (Step::Submit, _) => {
                self.sent += 1;
                submit(self.sent)
            }
            (Step::EvictIfIdle, _) => Input::EvictIfIdle,
            (Step::Evict, _) => Input::Evict,
            (Step::ChildGoesOn, Child::None | Child::Waiting(_)) => return,
            (Step::ChildGoesOn, Child::Starting(generation)) => {
                self.child = Child::Waiting(generation);
                Input::Ready(generation)
            }
            (Step::ChildGoesOn, Child::Working(generation, turn)) => {
                self.child = Child::Waiting(generation);
                self.answered.push(turn.0);
                ended(generation.0, turn.0)
            }
            (Step::ChildGoesOn, Child::Leaving(generation)) => {
                self.child = Child::None;
                gone(generation.0, ExitKind::Requested)
            }
        };
        let busy = matches!(self.child, Child::Working(..));
        for effect in self.bench.feed(input) {
            match (effect, self.child) {
                (Effect::Start { generation, .. }, Child::None) => self.child = Child::Starting(generation),
                (Effect::Deliver { generation, turn }, Child::Waiting(alive)) if alive == generation => {
                    self.child = Child::Working(generation, turn);
                }
                (Effect::Stop { generation }, Child::Working(alive, turn)) if alive == generation => {
                    assert!(matches!(step, Step::Evict) && busy, "a busy turn was evicted by the idle timer");
                    // It is interrupted, and that is its end.
                    self.answered.push(turn.0);
                    self.child = Child::Leaving(generation);
                }
                (Effect::Stop { generation }, Child::Starting(alive) | Child::Waiting(alive)) => {
                    assert_eq!(generation, alive);
                    self.child = Child::Leaving(generation);
                }
                (Effect::AnswerGone | Effect::AnswerWarm(_), _) => {}
                (effect, child) => panic!("{effect:?} with the child {child:?}"),
            }
        }
    }
}

#[test]
fn fault_42_turn_during_eviction_is_always_served() {
    let orders = STEPS.len().pow(LENGTH);
    assert!(orders > 10_000);
    for order in 0..orders {
        let steps: Vec<_> = (0..LENGTH).map(|at| STEPS[order / STEPS.len().pow(at) % STEPS.len()]).collect();
        let mut play = Play { bench: Bench::new(), child: Child::None, sent: 0, answered: Vec::new() };
        for step in &steps {
            play.take(*step);
        }
        // Left alone, it comes to rest with every turn answered, in their order, by nobody's error.
        for _ in 0..4 * LENGTH {
            play.take(Step::ChildGoesOn);
        }
        assert_eq!(play.answered, (1..=play.sent).collect::<Vec<_>>(), "{steps:?}");
        assert_eq!(play.bench.machine.queue_depth(), 0, "{steps:?}");
        assert!(matches!(play.child, Child::None | Child::Waiting(_)), "{steps:?}: {:?}", play.child);
    }
}
