// Requests to the gateway, and its errors in plain words.

import { kept } from './store.js'

export class Refusal extends Error {
  constructor(status, code, message, retryAfter = 0) {
    super(message)
    this.status = status
    this.code = code
    this.retryAfter = retryAfter
  }

  // Worth another try: the request itself is not wrong.
  get isTemporary() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504
  }
}

const WORDS = {
  401: 'This gateway needs an API key. Enter it in the settings.',
  403: 'This API key cannot use that model.',
  413: 'The message is too long for this gateway.',
  500: 'The server had an error, which is in its log. Try again.',
  503: 'The service is not available. Try again later.',
}

function inWords(status, error, retryAfter) {
  if (status === 401 && error.code === 'invalid_api_key') return 'The gateway does not know this API key.'
  if (status === 404 && error.code === 'job_not_found') return 'The server no longer has this answer.'
  if (status === 429) return `${busy(error)} Try again in ${retryAfter || 1} s.`
  if (error.code === 'unknown_host' || error.code === 'unknown_origin') return error.message
  return WORDS[status] ?? error.message ?? `The gateway answered with ${status}.`
}

function busy(error) {
  if (error.code === 'queue_full') return 'The queue of this model is full.'
  if (error.code === 'too_many_open') return 'Too many of your requests are open.'
  if (error.code === 'too_much_stored') return 'Your requests and answers fill your storage. Delete some jobs.'
  return 'The limit of this API key is reached.'
}

async function refusal(reply) {
  let error = {}
  try {
    error = (await reply.json()).error ?? {}
  } catch {
    // A proxy's page, not the gateway's.
  }
  const retryAfter = Number(reply.headers.get('retry-after')) || 0
  return new Refusal(reply.status, error.code, inWords(reply.status, error, retryAfter), retryAfter)
}

// Addresses are relative: the page may be behind a proxy, under another path.
export async function ask(path, { method = 'GET', body, headers = {}, signal } = {}) {
  const all = { ...headers }
  if (kept.key) all.authorization = `Bearer ${kept.key}`
  if (body !== undefined) all['content-type'] = 'application/json'
  let reply
  try {
    reply = await fetch(path, { method, headers: all, body: body && JSON.stringify(body), signal })
  } catch (error) {
    if (signal?.aborted) throw error
    throw new Refusal(0, 'unreachable', 'The gateway cannot be reached.')
  }
  if (!reply.ok) throw await refusal(reply)
  return reply
}

export async function askJson(path, options) {
  return (await ask(path, options)).json()
}
