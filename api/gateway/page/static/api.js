// Asking the gateway, and what its refusals mean in plain words.

import { kept } from './store.js'

export class Refusal extends Error {
  constructor(status, code, message, retryAfter = 0) {
    super(message)
    this.status = status
    this.code = code
    this.retryAfter = retryAfter
  }

  // Worth another try by itself: nothing is wrong with what was asked.
  get isTemporary() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504
  }
}

const WORDS = {
  401: 'This gateway wants an API key: type it in under Settings.',
  403: 'This API key may not use that model.',
  413: 'That is too long for this gateway.',
  500: 'Something went wrong on the server, and its log says what. Please try again.',
  503: 'The service is not available right now.',
}

function inWords(status, error, retryAfter) {
  if (status === 401 && error.code === 'invalid_api_key') return 'This API key is not known here.'
  if (status === 404 && error.code === 'job_not_found') return 'The server does not keep this answer any more.'
  if (status === 429) return `${busy(error)} Try again in ${retryAfter || 1} s.`
  if (error.code === 'unknown_host' || error.code === 'unknown_origin') return error.message
  return WORDS[status] ?? error.message ?? `The gateway answered with ${status}.`
}

function busy(error) {
  if (error.code === 'queue_full') return 'The queue of this model is full.'
  if (error.code === 'too_many_open') return 'Too many of your requests are open.'
  if (error.code === 'too_much_stored') return 'Your requests and answers fill your storage: delete some jobs.'
  return 'The limit of this API key is reached.'
}

async function refusal(reply) {
  let error = {}
  try {
    error = (await reply.json()).error ?? {}
  } catch {
    // Not the gateway's own: a proxy's page.
  }
  const retryAfter = Number(reply.headers.get('retry-after')) || 0
  return new Refusal(reply.status, error.code, inWords(reply.status, error, retryAfter), retryAfter)
}

// Addresses are relative: the page may stand behind a proxy, under a path of its own.
export async function ask(path, { method = 'GET', body, headers = {}, signal } = {}) {
  const all = { ...headers }
  if (kept.key) all.authorization = `Bearer ${kept.key}`
  if (body !== undefined) all['content-type'] = 'application/json'
  let reply
  try {
    reply = await fetch(path, { method, headers: all, body: body && JSON.stringify(body), signal })
  } catch (error) {
    if (signal?.aborted) throw error
    throw new Refusal(0, 'unreachable', 'The gateway can’t be reached.')
  }
  if (!reply.ok) throw await refusal(reply)
  return reply
}

export async function askJson(path, options) {
  return (await ask(path, options)).json()
}
