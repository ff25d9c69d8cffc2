//! The live page as people use it: in a real browser, with a mouse, with the keyboard alone, on a phone, in the dark.
//! Pictures of what was seen are in `target/page`. Without a Chromium these tests say that they are left out.

mod access;
mod alone;
mod charts;
mod hidden;
mod keys;
mod looks;
mod many;
mod one;
mod others;
mod sessions;
mod tasks;
mod trying;

use std::sync::Arc;

use crate::common::browser::Browser;
use crate::common::place::Place;
use crate::common::program::{Program, Site, place};

/// A server with this configuration, and a browser that shows its page; nothing where there is no browser.
async fn open(config: &str) -> Option<(Browser, Program, Site, Arc<Place>)> {
    let place = place();
    let mut browser = Browser::start(&place).await?;
    let (program, site) = Program::ready(&place, config).await;
    browser.open(&site.http).await;
    let is_filled = "document.querySelector('#rows tr') || !document.querySelector('#sessions-empty').hidden";
    browser.until("the sessions are there, or that there are none", is_filled).await;
    Some((browser, program, site, place))
}

/// The row of a user's default conversation, as a selector of something in it.
fn in_row(user: &str, rest: &str) -> String {
    format!("#rows tr:has(button[aria-label$=\" {user}, default\"]) {rest}")
}
