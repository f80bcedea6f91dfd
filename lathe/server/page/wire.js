// Asks the server that this page came from, over OpenAI's wire; knows nothing of the page.

import { apiKey } from "./store.js";

/** What the server refused, in its own words. */
export class Refusal extends Error {
  constructor(status, message, wait = null) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

async function call(path, { body, signal } = {}) {
  const headers = {};
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text.slice(0, 500);
  try { message = JSON.parse(text).error.message; } catch { /* the text must do */ }
  throw new Refusal(response.status, message || `The server answered ${response.status}.`, Number(response.headers.get("Retry-After")) || null);
}

/** Who can be asked: [{id, parent, context, plain}]; plain: it has no chat template, and goes on with a text. */
export async function models() {
  const told = await (await call("v1/models")).json();
  return told.data.map((one) => ({ id: one.id, parent: one.parent || null, context: one.max_model_len || one.meta?.n_ctx || null, plain: one.has_chat_template === false }));
}

/** The chunks of a chat completion, or of a plain one, as they come. Aborting `signal` ends it, on the server too. */
export async function* complete(body, signal) {
  const more = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true }, return_progress: true };
  const response = await call(body.messages ? "v1/chat/completions" : "v1/completions", { body: { ...body, ...more }, signal });
  try {
    for await (const data of frames(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // what a browser calls a broken connection
  }
  throw new Refusal(0, "The connection to the server broke before the answer was whole.");
}

/** Server-sent events become their data. Comments, which keep the connection alive, are passed over. */
export async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", lines = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = parts.pop();
    for (const line of parts) {
      if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && lines.length) { yield lines.join("\n"); lines = []; }
    }
  }
}
