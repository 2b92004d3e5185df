// The settings, and the request that they make.

import { askJson } from './api.js'
import { element, notice } from './page.js'
import { keep, kept } from './store.js'

const model = document.getElementById('model')
const modelState = document.getElementById('model-state')
const key = document.getElementById('key')
const NUMBERS = { temperature: 'temperature', 'top-p': 'top_p', 'max-tokens': 'max_tokens', seed: 'seed' }
const AGAIN_MS = 5000

let timer = 0
let isDown = false

export function openSettings(onKey) {
  for (const id of [...Object.keys(NUMBERS), 'system']) {
    const field = document.getElementById(id)
    field.value = kept.settings[id] ?? field.defaultValue
    field.addEventListener('input', () => {
      kept.settings[id] = field.value
      keep()
    })
  }
  key.value = kept.key
  key.addEventListener('change', () => {
    kept.key = key.value.trim()
    keep()
    loadModels()
    onKey()
  })
  model.addEventListener('change', () => {
    kept.model = model.value
    keep()
    showState()
  })
  loadModels()
}

// An OpenAI request; empty fields are left to the model.
export function request(messages) {
  const system = document.getElementById('system').value.trim()
  const body = { model: model.value, messages: system ? [{ role: 'system', content: system }, ...messages] : messages }
  for (const [id, name] of Object.entries(NUMBERS)) {
    const field = document.getElementById(id)
    if (field.value !== '') body[name] = field.valueAsNumber
  }
  return body
}

async function loadModels() {
  clearTimeout(timer)
  try {
    const { data } = await askJson('v1/models')
    document.body.classList.remove('needs-key')
    notice(null)
    showModels(data)
  } catch (error) {
    notice(error.isTemporary ? `${error.message} This page retries automatically.` : error.message)
    if (error.status === 401) {
      document.body.classList.add('needs-key')
      key.focus()
      return
    }
  }
  timer = setTimeout(refreshModels, AGAIN_MS)
}

// Later only the models' states, and whether the gateway answers. Other notices stay.
async function refreshModels() {
  if (model.options.length === 0) return loadModels()
  try {
    if (!document.hidden) {
      showModels((await askJson('v1/models')).data)
      if (isDown) notice(null)
      isDown = false
    }
  } catch (error) {
    if (error.status === 0) {
      isDown = true
      notice(`The gateway at ${location.host} does not answer. This page retries every ${AGAIN_MS / 1000} s.`)
    }
  }
  timer = setTimeout(refreshModels, AGAIN_MS)
}

function showModels(found) {
  const names = found.map((each) => each.id)
  if (names.join('\n') !== [...model.options].map((each) => each.value).join('\n')) {
    model.replaceChildren(...names.map((name) => element('option', '', name)))
    if (names.includes(kept.model)) model.value = kept.model
  }
  for (const option of model.options) {
    const { ready, max_model_len: context } = found.find((each) => each.id === option.value)
    option.dataset.ready = ready
    option.dataset.context = context
  }
  showState()
}

function showState() {
  const chosen = model.selectedOptions[0]
  if (!chosen) {
    modelState.textContent = 'The fleet has no model yet. Start a worker.'
    return
  }
  const isReady = chosen.dataset.ready === 'true'
  modelState.className = `hint state ${isReady ? 'ready' : 'away'}`
  const context = Number(chosen.dataset.context).toLocaleString('en')
  modelState.textContent = `${isReady ? 'Ready' : 'No worker right now'} · context ${context} tokens`
}
