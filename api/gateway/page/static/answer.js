// An answer: a background job and its stream, which resumes after any interruption.
//
// The page submits the job first and reads it afterwards, always by its id and the id of the last event seen.
// So a reload, a lost connection and a killed gateway are handled alike. The job runs in the background, because
// it has no reader while the page reloads; Stop or the deadline ends it.

import { Refusal, ask, askJson } from './api.js'
import { events } from './events.js'

const DEADLINE_S = 900
const SILENT_MS = 60000 // the gateway sends something every 15 s
const FIRST_WAIT_MS = 500
const LONGEST_WAIT_MS = 8000

// The stored state; `last` is an event id, in which 'u' requests the usage at the end.
export function newAnswer() {
  return {
    job: null, last: '0u', text: '', tokens: 0, promptTokens: null, askedAt: Date.now(), firstAt: null,
    lastAt: null, resumed: false, ended: false, stopReason: null, finish: null, error: null,
  }
}

export async function submit(answer, request) {
  const body = { ...request, background: true, deadline_s: DEADLINE_S }
  const job = await askJson('v1/chat/completions', { method: 'POST', body })
  answer.job = job.id
}

export async function cancel(answer) {
  await ask(jobPath(answer, 'cancel'), { method: 'POST' })
}

function jobPath(answer, what) {
  return `v1/jobs/${encodeURIComponent(answer.job)}/${what}`
}

// Reads to the end. `listener` is called with `text` that was added, with `trouble` and the seconds until the next
// try, when the stream is `back`, and with `change` otherwise. Throws Refusal if another try is useless.
export async function follow(answer, listener, signal) {
  let wait = FIRST_WAIT_MS
  while (!answer.ended && !signal.aborted) {
    try {
      await read(answer, listener, signal, () => { wait = FIRST_WAIT_MS })
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof Refusal && !error.isTemporary) throw error
    }
    if (answer.ended || signal.aborted) break
    listener.trouble(wait / 1000)
    await sleep(wait, signal)
    answer.resumed = true
    wait = Math.min(2 * wait, LONGEST_WAIT_MS)
  }
  if (answer.resumed && !signal.aborted) await correctTimes(answer)
}

async function read(answer, listener, signal, onEvent) {
  const attempt = new AbortController()
  const abort = () => attempt.abort()
  signal.addEventListener('abort', abort)
  let silence = setTimeout(abort, SILENT_MS)
  try {
    const headers = { 'last-event-id': answer.last }
    const reply = await ask(jobPath(answer, 'stream'), { headers, signal: attempt.signal })
    if (answer.resumed) listener.back()
    const isAlive = () => {
      clearTimeout(silence)
      silence = setTimeout(abort, SILENT_MS)
    }
    for await (const event of events(reply.body, isAlive)) {
      onEvent()
      if (event.data === '[DONE]') {
        answer.ended = true
        return
      }
      apply(answer, event, listener)
    }
  } finally {
    clearTimeout(silence)
    signal.removeEventListener('abort', abort)
  }
}

function apply(answer, { id, data }, listener) {
  const chunk = JSON.parse(data)
  if (chunk.error) {
    answer.error = chunk.error.message
  }
  const choice = chunk.choices?.[0]
  const added = choice?.delta?.content ?? ''
  const thought = choice?.delta?.reasoning_content ?? ''
  answer.text += added
  if (thought) answer.thoughts = (answer.thoughts ?? '') + thought
  if (id !== null) {
    answer.last = id
    answer.tokens = Number.parseInt(id, 10)
  }
  if (answer.tokens > 0) {
    answer.firstAt ??= Date.now()
    if (added || thought || !answer.lastAt) answer.lastAt = Date.now()
  }
  if (choice?.finish_reason) {
    answer.finish = choice.finish_reason
    answer.stopReason = choice.stop_reason ?? null
  }
  if (chunk.usage) answer.promptTokens = chunk.usage.prompt_tokens
  if (thought) listener.thought(thought)
  if (added) listener.text(added)
  else listener.change()
}

// The server has the times that this page missed.
async function correctTimes(answer) {
  try {
    const job = await askJson(`v1/jobs/${encodeURIComponent(answer.job)}`)
    if (job.first_token_at === null || job.ended_at === null) return
    answer.askedAt = job.enqueued_at * 1000
    answer.firstAt = job.first_token_at * 1000
    answer.lastAt = job.ended_at * 1000
  } catch {
    // The page's own figures are kept.
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    signal.addEventListener('abort', () => { clearTimeout(timer); resolve() }, { once: true })
    addEventListener('online', () => { clearTimeout(timer); resolve() }, { once: true })
  })
}
