// Asks with OpenAI's own client, once for each line of the standard input, and prints what class of error it raised.
// A line: {"url", "key", "model", "stream", "maxRetries"}. Its answer: {"kind", "status", "code", "param", "type", "text"}.
import { createInterface } from 'node:readline';
import OpenAI from 'openai';

async function ask({ url, key, model, stream, maxRetries }) {
  const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries, timeout: 20000 });
  let text = '';
  try {
    const messages = [{ role: 'user', content: 'A toaster, sealed, after 3 days.' }];
    const answer = await client.chat.completions.create({ model, messages, stream });
    if (!stream) return { kind: null, text: answer.choices[0].message.content };
    for await (const event of answer) text += event.choices[0]?.delta?.content ?? '';
    return { kind: null, text };
  } catch (error) {
    const { status, code, param, type } = error;
    return { kind: error.constructor.name, status: status ?? null, code, param, type, text };
  }
}

const asked = [];
for await (const line of createInterface({ input: process.stdin })) if (line.trim()) asked.push(ask(JSON.parse(line)));
for (const told of await Promise.all(asked)) console.log(JSON.stringify(told));
