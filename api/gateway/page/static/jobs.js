// The jobs of the key's tenant, refreshed while the list is visible.

import { ask, askJson } from './api.js'
import { ago, element, notice, seconds } from './page.js'

const AGAIN_MS = 2000
const PAGE = 20
const WORDS = {
  queued: 'waiting', in_progress: 'running', completed: 'complete', failed: 'failed', cancelled: 'stopped',
}

const rows = document.getElementById('job-rows')
const none = document.getElementById('no-jobs')
const older = document.getElementById('older')

let pages = 1
let timer = 0
let isShown = false

export function openJobs() {
  older.addEventListener('click', () => {
    pages += 1
    load()
  })
}

export function showJobs(shown) {
  isShown = shown
  clearTimeout(timer)
  if (shown) load()
}

export function forgetJobs() {
  pages = 1
  rows.replaceChildren()
  if (isShown) load()
}

async function load() {
  clearTimeout(timer)
  try {
    if (!document.hidden) show(await read())
    if (isShown) notice(null)
  } catch (error) {
    if (isShown) notice(error.message)
  }
  if (isShown) timer = setTimeout(load, AGAIN_MS)
}

async function read() {
  const found = { data: [], has_more: true }
  for (let page = 0; page < pages && found.has_more; page += 1) {
    const after = found.data.length ? `&after=${encodeURIComponent(found.data.at(-1).id)}` : ''
    const next = await askJson(`v1/jobs?limit=${PAGE}${after}`)
    found.data.push(...next.data)
    found.has_more = next.has_more
  }
  return found
}

// A row stays the same element while its job exists, so that a button keeps the keyboard focus.
function show({ data, has_more: hasMore }) {
  const known = new Map([...rows.children].map((row) => [row.dataset.job, row]))
  const wanted = data.map((job) => filled(known.get(job.id) ?? newRow(job.id), job))
  if (wanted.some((row, index) => rows.children[index] !== row) || rows.children.length !== wanted.length) {
    rows.replaceChildren(...wanted)
  }
  none.hidden = data.length > 0
  older.hidden = !hasMore
}

function newRow(id) {
  const row = element('tr', '')
  row.dataset.job = id
  for (const name of ['State', 'Job', 'Model', 'Prompt', 'Answer', 'First token', 'Duration', 'Submitted', '']) {
    const cell = element('td', '')
    cell.dataset.name = name
    row.append(cell)
  }
  return row
}

function filled(row, job) {
  const now = Date.now() / 1000
  const [state, id, model, promptTokens, answerTokens, first, took, asked, act] = row.children
  const isOpen = job.status === 'queued' || job.status === 'in_progress'
  if (row.dataset.status !== job.status) {
    row.dataset.status = job.status
    state.replaceChildren(element('span', `mark ${job.status}`, WORDS[job.status] ?? job.status))
    if (job.error) state.title = job.error.message
    act.replaceChildren(...(isOpen ? [stopButton(job.id)] : []))
  }
  set(id, job.id)
  set(model, job.lane === 'batch' ? `${job.model} (batch)` : job.model)
  set(promptTokens, job.usage.prompt_tokens || '–')
  set(answerTokens, job.usage.completion_tokens || '–')
  set(first, job.first_token_at ? seconds(job.first_token_at - job.enqueued_at) : '–')
  set(took, seconds(Math.max(0, (job.ended_at ?? now) - job.enqueued_at)))
  set(asked, ago(now - job.enqueued_at))
  return row
}

function set(cell, value) {
  const text = String(value)
  if (cell.textContent !== text) cell.textContent = text
}

function stopButton(id) {
  const button = element('button', 'quiet', 'Stop')
  button.type = 'button'
  button.setAttribute('aria-label', `Stop ${id}`)
  button.addEventListener('click', async () => {
    button.disabled = true
    try {
      await ask(`v1/jobs/${encodeURIComponent(id)}/cancel`, { method: 'POST' })
      load()
    } catch (error) {
      button.disabled = false
      notice(`The job could not be stopped: ${error.message}`)
    }
  })
  return button
}
