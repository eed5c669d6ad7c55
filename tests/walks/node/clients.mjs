// Cases of clients for Node: each asks the gateway in its own way, all at the same time.
// The standard input: {"url", "key"}. A line for each case: {"case", "value"}, or {"case", "error"} with the error's fields.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import OpenAI, { toFile } from 'openai';
import { zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

globalThis.AI_SDK_LOG_WARNINGS = false; // they would go to the standard output
let input = '';
for await (const part of process.stdin) input += part;
const { url, key } = JSON.parse(input);
const baseURL = `${url}/v1`;
const model = 'returns';
const prompt = 'Is a sealed toaster refunded after 3 days?';
const messages = [{ role: 'user', content: prompt }];
const City = z.object({ city: z.string() });
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false };
const cases = {};

// ---- OpenAI's own ------------------------------------------------------------------------------

const openai = new OpenAI({ baseURL, apiKey: key, maxRetries: 0, timeout: 60000 });

cases['openai chat'] = async () => {
  const answer = await openai.chat.completions.create({ model, messages });
  const stream = openai.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
  let text = '';
  stream.on('content', (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  return {
    same: text === answer.choices[0].message.content && text === final.choices[0].message.content,
    model: final.model, end: final.choices[0].finish_reason, usage: final.usage.total_tokens === answer.usage.total_tokens,
  };
};
cases['openai chat tools'] = async () => {
  const asked = [];
  const weather = async ({ city }) => (asked.push(city), 'rain');
  const tools = [{ type: 'function', function: { name: 'weather', function: weather, parse: JSON.parse, parameters } }];
  const run = openai.chat.completions.runTools({ model, messages, tools, stream: true });
  return { text: await run.finalContent(), asked, turns: (run.messages ?? []).map((message) => message.role) };
};
cases['openai responses'] = async () => {
  const answer = await openai.responses.create({ model, input: prompt, include: ['message.output_text.logprobs'] });
  const kinds = [];
  const stream = openai.responses.stream({ model, input: prompt });
  stream.on('event', (event) => kinds.push(event.type));
  const final = await stream.finalResponse();
  const usage = final.usage.total_tokens === answer.usage.total_tokens;
  return {
    same: answer.output_text === final.output[0].content[0].text, usage, status: final.status, last: kinds.at(-1),
    logprobs: answer.output[0].content[0].logprobs.map((each) => each.token).join('') === answer.output_text,
  };
};
cases['openai responses tools'] = async () => {
  const tools = [{ type: 'function', name: 'weather', parameters, strict: true }];
  const final = await openai.responses.stream({ model, input: prompt, tools }).finalResponse();
  const call = final.output[0];
  const output = { type: 'function_call_output', call_id: call.call_id, output: 'rain' };
  const next = await openai.responses.create({ model, tools, input: [...messages, ...final.output, output] });
  return { kind: call.type, arguments: call.parsed_arguments ?? JSON.parse(call.arguments), text: next.output_text !== '' };
};
cases['openai responses reasoning'] = async () => {
  const final = await openai.responses.stream({ model: 'general', input: prompt }).finalResponse();
  return final.output.map((item) => item.content[0].type);
};
cases['openai responses parsed'] = async () => {
  const text = { format: zodTextFormat(City, 'city') };
  return Object.keys((await openai.responses.parse({ model, input: prompt, text })).output_parsed);
};
cases['openai embeddings'] = async () => {
  const asked = { model: 'general', input: ['four', 'a b'] };
  const plain = await openai.embeddings.create({ ...asked, encoding_format: 'float' });
  const packed = await openai.embeddings.create(asked); // as base64
  const near = (one, other) => Math.abs(one - other) < 1e-6;
  return packed.data.every((each, at) => each.embedding.every((value, place) => near(value, plain.data[at].embedding[place])));
};
const asks = {
  chat: (fields) => openai.chat.completions.create({ model, messages, ...fields }),
  responses: (fields) => openai.responses.create({ model, input: prompt, ...fields }),
  embeddings: (fields) => openai.embeddings.create({ model: 'general', input: prompt, ...fields }),
};
for (const [name, ask] of Object.entries(asks)) {
  cases[`openai ${name}: unknown model`] = () => ask({ model: 'nothing' });
  cases[`openai ${name}: wrong field`] = () => ask({ user: 7 });
}

cases['openai files'] = async () => {
  const admin = new OpenAI({ baseURL: `${url}/admin/v1`, apiKey: key, maxRetries: 0, timeout: 60000 });
  const rows = JSON.stringify({ messages: [...messages, { role: 'assistant', content: 'Yes.' }] });
  const file = await admin.files.create({ file: await toFile(Buffer.from(rows), 'réws.jsonl'), purpose: 'fine-tune' });
  const content = await (await admin.files.content(file.id)).text();
  const job = await admin.fineTuning.jobs.create({ model, training_file: file.id }).catch((error) => error.code);
  const { deleted } = await admin.files.delete(file.id);
  return { name: file.filename, same: content === rows, job, deleted };
};

// ---- Vercel's AI SDK ---------------------------------------------------------------------------

const vercel = createOpenAI({ baseURL, apiKey: key });
const compatible = createOpenAICompatible({ name: 'apprentice', baseURL, apiKey: key, includeUsage: true, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL, apiKey: key });
const providers = { default: vercel, chat: vercel.chat, compatible, anthropic };
const tools = { weather: tool({ description: 'The weather.', inputSchema: City, execute: async ({ city }) => `rain in ${city}` }) };

for (const [name, provider] of Object.entries(providers)) {
  const asked = { model: provider(model), prompt, maxRetries: 0 };
  cases[`vercel ${name} text`] = async () => {
    const { text, finishReason, usage, response } = await generateText(asked);
    return { text: text !== '', finishReason, model: response.modelId, tokens: usage.inputTokens > 0 && usage.outputTokens > 0 };
  };
  cases[`vercel ${name} stream`] = async () => {
    const whole = await generateText(asked);
    const answer = streamText(asked);
    let text = '';
    for await (const delta of answer.textStream) text += delta;
    const usage = await answer.usage;
    const tokens = usage.inputTokens === whole.usage.inputTokens && usage.outputTokens === whole.usage.outputTokens;
    return { same: text === whole.text, end: await answer.finishReason, tokens };
  };
  cases[`vercel ${name} tools`] = async () => {
    const { steps, text } = await generateText({ ...asked, tools, stopWhen: stepCountIs(3) });
    const streamed = streamText({ ...asked, tools, stopWhen: stepCountIs(3) });
    await streamed.consumeStream({ onError: (error) => { throw error; } });
    const results = (each) => each.flatMap((step) => step.toolResults.map((result) => result.output));
    return { results: results(steps), streamed: results(await streamed.steps), same: (await streamed.text) === text, text: text !== '' };
  };
  cases[`vercel ${name} object`] = async () => Object.keys((await generateObject({ ...asked, schema: City })).object);
  cases[`vercel ${name} conversation`] = async () => {
    const first = await generateText(asked);
    const next = { role: 'user', content: 'And after 90?' };
    const providerOptions = { openai: { store: false } };
    const turns = [...messages, ...first.response.messages, next];
    return (await generateText({ model: asked.model, maxRetries: 0, messages: turns, providerOptions })).text !== '';
  };
  cases[`vercel ${name}: unknown model`] = () => generateText({ ...asked, model: provider('nothing') });
  cases[`vercel ${name}: unknown model, streamed`] = async () => {
    const found = [];
    await streamText({ ...asked, model: provider('nothing'), onError: ({ error }) => found.push(error) }).consumeStream();
    throw found[0];
  };
}
cases['vercel default: stored conversation'] = async () => {
  const asked = { model: vercel(model), maxRetries: 0 };
  const first = await generateText({ ...asked, messages });
  await generateText({ ...asked, messages: [...messages, ...first.response.messages, { role: 'user', content: 'And?' }] });
};
for (const [name, embedder] of Object.entries({ default: vercel.embedding('general'), compatible: compatible.embeddingModel('general') })) {
  cases[`vercel ${name} embeddings`] = async () => (await embedMany({ model: embedder, values: ['four', 'a b'] })).embeddings;
}

const run = async ([name, ask]) => {
  try {
    return { case: name, value: await ask() };
  } catch (error) {
    const { status, statusCode, code, param, type, isRetryable, message } = error;
    return { case: name, error: { kind: error.constructor.name, status: status ?? statusCode, code, param, type, isRetryable, message } };
  }
};
for (const told of await Promise.all(Object.entries(cases).map(run))) console.log(JSON.stringify(told));
