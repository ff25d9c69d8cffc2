//! A response in the background, as it is shown without its answer. Pure.

use super::object::Object;
use super::request::Asked;
use crate::server::dialect::AnswerContext;

/// What stays the same of a response that is answered later.
pub(crate) struct Background {
    object: Object,
    model: String,
}

impl Background {
    pub(crate) fn new(context: &AnswerContext, asked: &Asked) -> Self {
        Self { object: Object::new(context, asked), model: context.model.clone() }
    }

    /// Memory of it: instructions and tools may be long.
    pub(crate) fn bytes(&self) -> usize {
        self.object.bytes() + self.model.len()
    }

    /// The response before its answer.
    pub(crate) fn unfinished(&self, has_begun: bool) -> String {
        self.object.without_answer(&self.model, if has_begun { "in_progress" } else { "queued" })
    }

    pub(crate) fn cancelled(&self) -> String {
        self.object.without_answer(&self.model, "cancelled")
    }

    pub(crate) fn failed(&self, code: &str, message: &str) -> String {
        self.object.failed(&self.model, (code, message), &[])
    }
}
