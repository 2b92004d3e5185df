// An answer: a job in the background and its stream, which goes on after any interruption.
//
// The job is asked for first and read afterwards, always in the same way: by its id and the id of the last
// event that was seen. So a reload, a lost connection and a gateway that died are all the same thing. In the
// background, since nobody would read it while a page is being loaded; Stop cancels it, and so does its deadline.

import { Refusal, ask, askJson } from './api.js'
import { events } from './events.js'

const DEADLINE_S = 900
const SILENT_MS = 60000 // the gateway says something every 15 s
const FIRST_WAIT_MS = 500
const LONGEST_WAIT_MS = 8000

// What is kept of it; `last` is an event's id, and 'u' in it asks for the usage at the end.
export function newAnswer() {
  return {
    job: null, last: '0u', text: '', tokens: 0, promptTokens: null, askedAt: Date.now(), firstAt: null,
    lastAt: null, resumed: false, ended: false, stopReason: null, finish: null, error: null,
  }
}

export async function submit(answer, request) {
  const body = { ...request, background: true, deadline_s: DEADLINE_S }
  const told = await askJson('v1/chat/completions', { method: 'POST', body })
  answer.job = told.id
}

export async function cancel(answer) {
  await ask(jobPath(answer, 'cancel'), { method: 'POST' })
}

function jobPath(answer, what) {
  return `v1/jobs/${encodeURIComponent(answer.job)}/${what}`
}

// Reads to the end. `told` hears of `text` that was added, of `trouble` with the seconds until the next try,
// when it is `back`, and of `change` otherwise. Throws Refusal where another try would be no use.
export async function follow(answer, told, signal) {
  let wait = FIRST_WAIT_MS
  while (!answer.ended && !signal.aborted) {
    try {
      await read(answer, told, signal, () => { wait = FIRST_WAIT_MS })
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof Refusal && !error.isTemporary) throw error
    }
    if (answer.ended || signal.aborted) break
    told.trouble(wait / 1000)
    await sleep(wait, signal)
    answer.resumed = true
    wait = Math.min(2 * wait, LONGEST_WAIT_MS)
  }
  if (answer.resumed && !signal.aborted) await correctTimes(answer)
}

async function read(answer, told, signal, onEvent) {
  const attempt = new AbortController()
  const abort = () => attempt.abort()
  signal.addEventListener('abort', abort)
  let silence = setTimeout(abort, SILENT_MS)
  try {
    const headers = { 'last-event-id': answer.last }
    const reply = await ask(jobPath(answer, 'stream'), { headers, signal: attempt.signal })
    if (answer.resumed) told.back()
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
      apply(answer, event, told)
    }
  } finally {
    clearTimeout(silence)
    signal.removeEventListener('abort', abort)
  }
}

function apply(answer, { id, data }, told) {
  const said = JSON.parse(data)
  if (said.error) {
    answer.error = said.error.message
  }
  const choice = said.choices?.[0]
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
  if (said.usage) answer.promptTokens = said.usage.prompt_tokens
  if (thought) told.thought(thought)
  if (added) told.text(added)
  else told.change()
}

// What this page missed while it was away, the server has seen.
async function correctTimes(answer) {
  try {
    const job = await askJson(`v1/jobs/${encodeURIComponent(answer.job)}`)
    if (job.first_token_at === null || job.ended_at === null) return
    answer.askedAt = job.enqueued_at * 1000
    answer.firstAt = job.first_token_at * 1000
    answer.lastAt = job.ended_at * 1000
  } catch {
    // Then the figures are this page's own.
  }
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    signal.addEventListener('abort', () => { clearTimeout(timer); resolve() }, { once: true })
    addEventListener('online', () => { clearTimeout(timer); resolve() }, { once: true })
  })
}
