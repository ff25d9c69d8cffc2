// What the scripts for Node share: a list of named checks, as `checks.py` has it for Python. Packages are found where
// `NODE_SDKS` says.

import { deepStrictEqual } from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const url = process.env.PILOTLIGHT_URL;
export const key = "unused";
export const model = "claude-opus-4-8";

const { resolve } = createRequire(pathToFileURL(`${process.env.NODE_SDKS}/`));

/** A package, as an `import` by its name would find it. */
export const load = (name) => import(pathToFileURL(resolve(name)));

export const equal = deepStrictEqual;

let users = 0;

/** A user nobody else has. */
export const newUser = () => `${String(++users).padStart(6, "0")}-user`;

/** The processes that serve a user. */
export async function pids(user) {
  const answer = await fetch(`${url}/v1/sessions`, { headers: { "x-pilotlight-user": user } });
  const { sessions } = await answer.json();
  return new Set(sessions.map((session) => session.pid).filter(Boolean));
}

export async function raises(kind, call) {
  try {
    await call();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** Carries out the checks, an object of functions, in their order and ends the process. */
export async function run(checks) {
  const wanted = process.argv.slice(2);
  const chosen = Object.entries(checks).filter(([name]) => !wanted.length || wanted.includes(name));
  const failed = [];
  for (const [name, check] of chosen) {
    const began = performance.now();
    try {
      await check();
      console.log(`ok ${name} (${((performance.now() - began) / 1000).toFixed(2)} s)`);
    } catch (error) {
      failed.push(name);
      console.log(`FAILED ${name}\n`, error);
    }
  }
  console.log(`${chosen.length - failed.length} of ${chosen.length} checks passed; failed: ${failed.join(", ") || "none"}`);
  process.exit(failed.length || !chosen.length ? 1 : 0);
}
