// The page's start: two views and the settings.

import { newChat, openChat } from './chat.js'
import { forgetJobs, openJobs, showJobs } from './jobs.js'
import { openSettings } from './settings.js'

const VIEWS = ['chat', 'jobs']

function select(view) {
  for (const name of VIEWS) {
    const tab = document.getElementById(`tab-${name}`)
    tab.setAttribute('aria-selected', String(name === view))
    tab.tabIndex = name === view ? 0 : -1
    document.getElementById(name).hidden = name !== view
  }
  openPanel(false)
  showJobs(view === 'jobs')
  history.replaceState(null, '', view === 'jobs' ? '#jobs' : '#')
}

function openTabs() {
  for (const name of VIEWS) {
    const tab = document.getElementById(`tab-${name}`)
    tab.addEventListener('click', () => select(name))
    tab.addEventListener('keydown', (event) => {
      if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') {
        const other = VIEWS.find((each) => each !== name)
        select(other)
        document.getElementById(`tab-${other}`).focus()
      }
    })
  }
}

// On a narrow screen the settings cover the conversation.
const panelButton = document.getElementById('open-settings')

function openPanel(isOpen) {
  document.body.classList.toggle('settings-open', isOpen)
  panelButton.setAttribute('aria-expanded', String(isOpen))
}

panelButton.addEventListener('click', () => openPanel(!document.body.classList.contains('settings-open')))
openTabs()
openJobs()
openSettings(forgetJobs)
openChat()
document.getElementById('new-chat').addEventListener('click', () => {
  select('chat')
  newChat()
})
select(location.hash === '#jobs' ? 'jobs' : 'chat')
