// Writes build/schema.ts: each dashboard as a literal of the type that Grafana's own schema gives it. `npm run schema`
// has tsc judge it. Enumerations stand in JSON as their values, so they are compared as such.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';

const folder = new URL('../../../monitoring/dashboards/', import.meta.url);
const names = readdirSync(folder).filter((name) => name.endsWith('.json'));
const literals = names.map((name, place) => {
  const text = readFileSync(new URL(name, folder), 'utf8').trim();
  return `export const board${place}: AsJson<Board> = ${text};\n`;
});
mkdirSync('build', { recursive: true });
writeFileSync('build/schema.ts', `import type { AnnotationQuery, Dashboard } from '@grafana/schema';

type AsJson<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined ? T
  : T extends Array<infer U> ? AsJson<U>[] : T extends object ? { [K in keyof T]: AsJson<T[K]> } : T;

// The schema has no formats of Prometheus' events.
type Event = Omit<AnnotationQuery, 'target'> & { tagKeys: string; textFormat: string; titleFormat: string; target: object };
type Board = Omit<Dashboard, 'annotations'> & { annotations: { list: Event[] } };

${literals.join('')}`);
console.log(`${names.length} dashboards: ${names.join(', ')}`);
