//! Order of a restored transcript: each parent before its children, and last the entry that the conversation ends with,
//! for the CLI goes on from the last one. Pure.
//!
//! A journal has also the entries of turns that died before the CLI had written them down. A later turn that goes on from
//! before them has forgotten them: they are left out, or the file would hold a turn that the conversation lacks.

use std::collections::{HashMap, HashSet};

use super::{Id, Line, Origin, is_prompt};

/// The places of the lines that are written, in their order.
pub(super) fn order(lines: &[Line<'_>], checkpoint: Id, answered: &HashSet<Id>) -> Vec<usize> {
    let tree = Tree::new(lines);
    let mut order = tree.parents_first();
    let Some(leaf) = tree.leaf(&order, checkpoint) else { return order };
    let left_out = tree.left_out(&order, leaf, answered);
    order.retain(|at| left_out.get(*at) != Some(&true));
    let is_entry = |at: &usize| lines.get(*at).is_some_and(Line::is_in_conversation);
    if order.iter().rev().copied().find(is_entry) != Some(leaf) {
        order.retain(|at| *at != leaf);
        order.push(leaf);
    }
    order
}

struct Tree<'a, 'b> {
    lines: &'a [Line<'b>],
    /// The last of several lines with one id counts.
    of_id: HashMap<Id, usize>,
}

impl<'a, 'b> Tree<'a, 'b> {
    fn new(lines: &'a [Line<'b>]) -> Self {
        let of_id = lines.iter().enumerate().filter_map(|(at, line)| Some((line.id?, at))).collect();
        Self { lines, of_id }
    }

    fn parent(&self, at: usize) -> Option<usize> {
        self.lines.get(at)?.parent.and_then(|parent| self.of_id.get(&parent).copied())
    }

    fn parents_first(&self) -> Vec<usize> {
        let mut placed = vec![false; self.lines.len()];
        let mut order = Vec::with_capacity(self.lines.len());
        let mut due = Vec::new();
        for first in 0..self.lines.len() {
            let mut next = Some(first);
            while let Some(at) = next.take_if(|at| placed.get(*at) == Some(&false)) {
                mark(&mut placed, at);
                due.push(at);
                next = self.parent(at);
            }
            order.extend(due.drain(..).rev());
        }
        order
    }

    /// Where the conversation ends: with what hangs last on the end of the file, or on the checkpoint if the file ends
    /// elsewhere.
    fn leaf(&self, order: &[usize], checkpoint: Id) -> Option<usize> {
        let checkpoint = *self.of_id.get(&checkpoint)?;
        let is_entry = |at: &usize| self.lines.get(*at).is_some_and(Line::is_in_conversation);
        let of_file =
            |at: &usize| is_entry(at) && self.lines.get(*at).is_some_and(|line| line.origin == Origin::File);
        let end = (0..self.lines.len()).rev().find(of_file);
        let hang = self.hang_on(order, checkpoint);
        let base = end.filter(|end| hang.get(*end) == Some(&true)).unwrap_or(checkpoint);
        let hang = self.hang_on(order, base);
        order.iter().rev().copied().find(|at| is_entry(at) && hang.get(*at) == Some(&true)).or(Some(base))
    }

    /// Which lines are the one at `base` or come after it.
    fn hang_on(&self, order: &[usize], base: usize) -> Vec<bool> {
        let mut hang = vec![false; self.lines.len()];
        for at in order {
            let after = self.parent(*at).is_some_and(|parent| hang.get(parent) == Some(&true));
            if *at == base || after {
                mark(&mut hang, *at);
            }
        }
        hang
    }

    /// Which lines belong to forgotten turns: to prompts that were in no file, and on which hangs nothing that was, no
    /// answer, and not the end.
    fn left_out(&self, order: &[usize], leaf: usize, answered: &HashSet<Id>) -> Vec<bool> {
        let stays = |line: &Line<'_>| {
            line.origin != Origin::Stream || line.id.is_none_or(|id| answered.contains(&id))
        };
        let mut needed: Vec<_> = self.lines.iter().map(stays).collect();
        mark(&mut needed, leaf);
        for at in order.iter().rev().copied() {
            if let Some(parent) = self.parent(at).filter(|_| needed.get(at) == Some(&true)) {
                mark(&mut needed, parent);
            }
        }
        let mut left_out = vec![false; self.lines.len()];
        for at in order.iter().copied().filter(|at| needed.get(*at) == Some(&false)) {
            let follows = self.parent(at).is_some_and(|parent| left_out.get(parent) == Some(&true));
            if follows || self.lines.get(at).is_some_and(|line| is_prompt(&line.text)) {
                mark(&mut left_out, at);
            }
        }
        left_out
    }
}

fn mark(marks: &mut [bool], at: usize) {
    marks.get_mut(at).into_iter().for_each(|it| *it = true);
}
