// The conversation on the page.

import { Refusal, askJson } from './api.js'
import { cancel, follow, newAnswer, submit } from './answer.js'
import { showMarkdown } from './markdown.js'
import { element, figures, notice } from './page.js'
import { request } from './settings.js'
import { keep, keepSoon, kept } from './store.js'

const LOOK_FOR_WORKER_MS = 2000

const turns = document.getElementById('turns')
const welcome = document.getElementById('welcome')
const prompt = document.getElementById('prompt')
const sendButton = document.getElementById('send')
const stopButton = document.getElementById('stop')
const status = document.getElementById('status')

let running = null // { answer, abort, stopping } of the answer that is being written

export function openChat() {
  document.getElementById('composer').addEventListener('submit', (event) => {
    event.preventDefault()
    send()
  })
  prompt.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      send()
    }
  })
  prompt.addEventListener('input', fitPrompt)
  addEventListener('keydown', (event) => { if (event.key === 'Escape') stop() })
  stopButton.addEventListener('click', stop)
  restore()
}

export function newChat() {
  stop()
  running?.abort.abort()
  running = null
  kept.turns = []
  keep()
  turns.replaceChildren(welcome)
  notice(null)
  showRunning()
  prompt.focus()
}

function restore() {
  for (const turn of kept.turns) show(turn)
  const last = kept.turns.at(-1)
  if (!last?.answer || last.answer.ended || last.answer.error) return
  if (last.answer.job === null) {
    fail(last, 'The page was reloaded before the job had an id. Look for it under Jobs.')
  } else {
    last.answer.resumed = true
    run(last, null)
  }
}

function send() {
  const text = prompt.value.trim()
  if (!text || running) return
  prompt.value = ''
  fitPrompt()
  kept.turns.push({ role: 'user', text })
  show(kept.turns.at(-1))
  answerNow()
}

function answerNow() {
  const body = request(history())
  const turn = { role: 'assistant', model: body.model, answer: newAnswer() }
  kept.turns.push(turn)
  keep()
  show(turn)
  turns.scrollTop = turns.scrollHeight
  run(turn, body)
}

function history() {
  const messages = []
  for (const turn of kept.turns) {
    if (turn.role === 'user') messages.push({ role: 'user', content: turn.text })
    else if (turn.answer.text) messages.push({ role: 'assistant', content: turn.answer.text })
    else messages.pop() // A message without an answer: many chat templates require alternating roles.
  }
  return messages
}

async function run(turn, body) {
  const { answer } = turn
  const mine = { answer, abort: new AbortController(), stopping: false }
  running = mine
  showRunning()
  notice(null)
  const looking = setTimeout(() => lookForWorker(turn, mine), LOOK_FOR_WORKER_MS)
  try {
    if (body) await submit(answer, body)
    keep()
    if (mine.stopping || mine.abort.signal.aborted) cancel(answer).catch(() => {})
    await follow(answer, listener(turn, mine), mine.abort.signal)
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    answer.error = error.message
    if (error.status === 401) document.body.classList.add('needs-key')
  } finally {
    clearTimeout(looking)
    if (running === mine) {
      running = null
      showRunning()
      notice(null)
      prompt.focus()
    }
    if (!mine.abort.signal.aborted) {
      showSoon(turn)
      status.textContent = answer.error ? 'The answer failed.' : 'The answer is complete.'
      keep()
      refresh(turn)
    }
  }
}

function listener(turn, mine) {
  return {
    text() {
      showSoon(turn)
      refresh(turn)
      if (mine === running) notice(null)
      keepSoon()
    },
    thought(added) {
      const stick = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80
      turn.view.thoughts.firstChild.appendData(added)
      turn.view.thinking.hidden = false
      if (stick) turns.scrollTop = turns.scrollHeight
    },
    change() {
      refresh(turn)
      if (mine === running && turn.answer.tokens > 0) notice(null)
      keepSoon()
    },
    back() {
      if (mine === running) notice(null)
    },
    trouble(seconds) {
      if (mine === running) {
        notice(`Connection lost. The answer continues on the server; this page reconnects in ${seconds} s.`)
      }
    },
  }
}

// A job may wait for a worker without a limit; the page shows that it waits.
async function lookForWorker(turn, mine) {
  if (running !== mine || turn.answer.tokens > 0) return
  try {
    const { data } = await askJson('v1/models')
    const model = data.find((each) => each.id === turn.model)
    if (running !== mine || turn.answer.tokens > 0) return
    if (model && !model.ready) {
      notice(`No worker serves ${turn.model} right now. Your message waits until one starts.`)
    } else {
      notice('The workers are busy. Your message waits in the queue.')
    }
  } catch {
    // The stream reports a lost connection.
  }
  setTimeout(() => lookForWorker(turn, mine), LOOK_FOR_WORKER_MS)
}

async function stop() {
  if (!running || running.stopping) return
  running.stopping = true
  stopButton.disabled = true
  const { answer } = running
  if (answer.job === null) return // it is cancelled when it has an id
  try {
    await cancel(answer)
  } catch (error) {
    if (running?.answer === answer) running.stopping = stopButton.disabled = false
    notice(`The answer could not be stopped: ${error.message}`)
  }
}

function showRunning() {
  sendButton.hidden = running !== null
  stopButton.hidden = running === null
  stopButton.disabled = Boolean(running?.stopping)
}

function show(turn) {
  welcome.remove()
  if (turn.role === 'user') {
    turns.append(element('article', 'turn user', element('p', 'text', turn.text)))
    turns.scrollTop = turns.scrollHeight
    return
  }
  const view = {
    text: element('div', 'text'),
    error: element('p', 'error'),
    figures: element('p', 'figures'),
  }
  view.thoughts = element('p', 'thought', turn.answer.thoughts ?? '')
  view.thinking = element('details', 'thinking', element('summary', '', 'Thoughts'), view.thoughts)
  view.thinking.hidden = !turn.answer.thoughts
  view.article = element('article', 'turn assistant', view.thinking, view.text, view.error, view.figures)
  view.article.setAttribute('aria-label', `Answer of ${turn.model}`)
  // Not enumerable, so that it is not stored: the turn is stored as JSON.
  Object.defineProperty(turn, 'view', { value: view, configurable: true })
  showMarkdown(view.text, turn.answer.text)
  turns.append(view.article)
  refresh(turn)
}

// At most once per frame, for any number of events.
function showSoon(turn) {
  if (turn.view.isDue) return
  turn.view.isDue = true
  const show = () => {
    if (!turn.view.isDue) return
    turn.view.isDue = false
    const stick = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80
    showMarkdown(turn.view.text, turn.answer.text)
    if (stick) turns.scrollTop = turns.scrollHeight
  }
  // A page in the background draws no frames.
  requestAnimationFrame(show)
  setTimeout(show, 250)
}

function refresh(turn) {
  const { view, answer } = turn
  const isRunning = !answer.ended && !answer.error
  view.article.classList.toggle('running', isRunning)
  view.article.setAttribute('aria-busy', String(isRunning))
  view.figures.textContent = figures(answer)
  if (answer.error && !view.error.textContent) {
    view.error.append(answer.error, ' ')
    view.error.append(retryButton(turn))
  }
  view.error.hidden = !answer.error
}

function retryButton(turn) {
  const button = element('button', 'quiet', 'Try again')
  button.type = 'button'
  button.addEventListener('click', () => {
    if (running || kept.turns.at(-1) !== turn) return
    kept.turns.pop()
    turn.view.article.remove()
    answerNow()
  })
  return button
}

function fail(turn, message) {
  turn.answer.error = message
  refresh(turn)
  keep()
}

function fitPrompt() {
  prompt.style.height = 'auto'
  prompt.style.height = `${Math.min(prompt.scrollHeight, 240)}px`
}
