//! What a page must keep on each of its parts, whatever it shows.

use serde_json::Value;

use super::Browser;
use crate::installed;

impl Browser {
    /// Brings the checker of accessibility into the page; not where it is not installed.
    pub async fn bring_axe(&mut self) -> bool {
        let Some(axe) = installed::axe() else { return false };
        let axe = std::fs::read_to_string(axe).expect("the checker is read");
        self.eval(&format!("{axe}; 0")).await;
        true
    }

    /// The rules of accessibility that the page breaks now, with the elements.
    pub async fn violations(&mut self) -> String {
        let found = self
            .eval(
                "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => \
                 violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`).join('\\n'))",
            )
            .await;
        found.as_str().expect("a text").to_owned()
    }

    /// What reaches out of a window of this width to the right, `[false, []]` if nothing does. Not the window's own width: on
    /// a phone it grows with the page.
    pub async fn sticks_out(&mut self, width: u32) -> Value {
        let found = format!(
            "[document.documentElement.scrollWidth > {width}, \
             [...document.querySelectorAll('body *:not(.unseen):not(.skip):not(thead):not(thead *)')] \
             .filter((it) => it.checkVisibility() && it.getBoundingClientRect().right > {width} + 1) \
             .map((it) => it.outerHTML.slice(0, 80))]"
        );
        self.eval(&found).await
    }

    /// Text and names that are read on the page and have something hidden in them.
    pub async fn hidden(&mut self) -> String {
        let found = self
            .eval(
                "(() => { const bad = /(?![\\n\\t])[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{DI}]/u; \
                 const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); const found = []; \
                 while (texts.nextNode()) if (bad.test(texts.currentNode.data)) found.push(texts.currentNode.data); \
                 for (const it of document.querySelectorAll('[title], [aria-label]')) \
                 for (const name of ['title', 'aria-label']) if (bad.test(it.getAttribute(name) ?? '')) \
                 found.push(`${name} ${it.getAttribute(name)}`); return found.map(JSON.stringify).join('\\n'); })()",
            )
            .await;
        found.as_str().expect("a text").to_owned()
    }
}
