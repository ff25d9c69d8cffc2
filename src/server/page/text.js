// Text of strangers: what is hidden in it, or turns the direction of writing, becomes its number, so that it cannot pass for
// another text.

const numbered = (mark) => `<U+${mark.codePointAt(0).toString(16).toUpperCase()}>`;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]/gu;
/** All of them but line ends and tabs, and what joins or chooses the shapes of letters and pictures. */
const IN_PROSE = /(?![\n\t\u00ad\u200c\u200d\ufe0e\ufe0f])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]/gu;
/** All of them but line ends and tabs. */
const IN_CODE = /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{DI}]/gu;

/** A name, which is compared with others. */
export const named = (text) => String(text).replace(HIDDEN, numbered);

/** A command, or another text that is judged before it takes effect. */
export const judged = (text) => text.replace(IN_CODE, numbered);

/** Any other text. */
export const prose = (text) => text.replace(IN_PROSE, numbered);
