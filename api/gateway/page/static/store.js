// What this tab keeps: settings, the key, and the conversation with the ids that its answers go on from.
// All of it in sessionStorage: it survives a reload, and is gone with the tab.

const NAME = 'pagefleet'

function empty() {
  return { key: '', model: '', settings: {}, turns: [] }
}

function read() {
  try {
    return { ...empty(), ...JSON.parse(sessionStorage.getItem(NAME)) }
  } catch {
    return empty()
  }
}

export const kept = read()

let timer = 0

// Text and event id of an answer are written together: whatever moment a reload comes at, they fit.
export function keep() {
  clearTimeout(timer)
  timer = 0
  try {
    sessionStorage.setItem(NAME, JSON.stringify(kept))
  } catch {
    // No room, or none allowed: the page works all the same, until it is reloaded.
  }
}

export function keepSoon() {
  timer ||= setTimeout(keep, 250)
}

addEventListener('pagehide', keep)
