// The tab's state: settings, the key, and the conversation with the ids from which its answers resume.
// It is in sessionStorage: it survives a reload and disappears with the tab.

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

// Text and event id of an answer are written together, so that they match after a reload at any moment.
export function keep() {
  clearTimeout(timer)
  timer = 0
  try {
    sessionStorage.setItem(NAME, JSON.stringify(kept))
  } catch {
    // Storage is full or forbidden: the page still works until it is reloaded.
  }
}

export function keepSoon() {
  timer ||= setTimeout(keep, 250)
}

addEventListener('pagehide', keep)
