// Shared parts of the page: elements, the notice, figures in words.

export function element(name, className, ...content) {
  const made = document.createElement(name)
  if (className) made.className = className
  made.append(...content) // strings become text
  return made
}

// One line at the top; null removes it.
export function notice(text) {
  const place = document.getElementById('notice')
  if (place.textContent !== (text ?? '')) place.textContent = text ?? ''
  place.hidden = text === null
}

export function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`
  if (value < 90) return `${value.toFixed(1)} s`
  if (value < 5400) return `${Math.round(value / 60)} min`
  if (value < 129600) return `${Math.round(value / 3600)} h`
  return `${Math.round(value / 86400)} days`
}

export function ago(value) {
  return value < 2 ? 'just now' : `${value < 90 ? `${Math.round(value)} s` : seconds(value)} ago`
}

const ENDS = { cancelled: 'stopped', deadline: 'out of time' }

// The number of tokens, the rate, the time to the first token, and the end.
export function figures(answer) {
  const parts = []
  if (answer.tokens > 0) parts.push(`${answer.tokens} ${answer.tokens === 1 ? 'token' : 'tokens'}`)
  const lasted = (answer.lastAt - answer.firstAt) / 1000
  if (answer.tokens > 1 && lasted > 0.05) parts.push(`${((answer.tokens - 1) / lasted).toFixed(1)} tok/s`)
  if (answer.firstAt) parts.push(`first token ${seconds(Math.max(0, answer.firstAt - answer.askedAt) / 1000)}`)
  if (answer.promptTokens !== null) parts.push(`prompt ${answer.promptTokens}`)
  if (answer.ended && answer.finish) {
    parts.push(ENDS[answer.stopReason] ?? (answer.finish === 'length' ? 'cut at max tokens' : 'complete'))
  }
  if (parts.length === 0 && !answer.error) parts.push(answer.job ? 'waiting' : 'sending')
  return parts.join(' · ')
}
