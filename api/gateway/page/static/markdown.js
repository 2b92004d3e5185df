// Markdown as elements: headings, lists, quotes, tables, code, emphasis, links. The model's text never becomes
// markup: every piece is a text node, HTML included, and links lead to http, https or mailto only.

import { element } from './page.js'

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$/
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/
const QUOTE = /^ {0,3}> ?/
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( {1,4}|\t|$)/
const DASHES = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/
const LINK = /^(?:https?:[/]{2}|mailto:)[^\s<>]+$/i
const BARE_LINK = /^https?:[/]{2}[^\s<>`]*[^\s<>`.,:;!?'")\]*_~]/i
const SPECIAL = /[\\`*_~[!]|https?:/gi
const MARKS = [['**', 'strong'], ['__', 'strong'], ['~~', 'del'], ['*', 'em'], ['_', 'em']]
const MAX_DEPTH = 8

// Shows `text` in `place`. Called again with a longer text, it leaves the blocks that have not changed as they are.
export function showMarkdown(place, text) {
  const wanted = blocks(text.split('\n'))
  let same = 0
  while (same < wanted.length && place.children[same]?.source === wanted[same].source) same += 1
  while (place.children.length > same) place.lastElementChild.remove()
  for (const { source, make } of wanted.slice(same)) {
    const made = make()
    made.source = source
    place.append(made)
  }
  place.source = text
}

// The blocks, each with its source lines and a function that makes its element.
function blocks(lines, depth = 0) {
  const found = []
  let at = 0
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1
      continue
    }
    const [end, make] = blockAt(lines, at, depth)
    found.push({ source: lines.slice(at, end).join('\n'), make })
    at = end
  }
  return found
}

function blockAt(lines, at, depth) {
  const line = lines[at]
  let match
  if ((match = FENCE.exec(line))) return fence(lines, at, match)
  if ((match = HEADING.exec(line))) {
    const [, marks, text] = match
    return [at + 1, () => inline(element(`h${Math.min(6, marks.length + 2)}`), text)]
  }
  if (RULE.test(line)) return [at + 1, () => element('hr')]
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth)
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth)
  if (isTable(lines, at)) return table(lines, at)
  return paragraph(lines, at, depth)
}

function fence(lines, at, [, marks, language]) {
  const isEnd = (line) => line.trim().startsWith(marks) && !line.trim().replaceAll(marks[0], '')
  let end = at + 1
  while (end < lines.length && !isEnd(lines[end])) end += 1
  const make = () => {
    const code = element('pre', 'code', element('code', '', lines.slice(at + 1, end).join('\n')))
    code.tabIndex = 0 // scrollable with the keyboard if it is wider than the page
    if (language) code.dataset.language = language
    return code
  }
  return [Math.min(end + 1, lines.length), make]
}

function quote(lines, at, depth) {
  let end = at
  while (end < lines.length && QUOTE.test(lines[end])) end += 1
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ''))
  return [end, () => filled(element('blockquote'), inner, depth)]
}

function list(lines, at, depth) {
  const isOrdered = (mark) => /\d/.test(mark)
  const [, , first] = ITEM.exec(lines[at])
  const items = []
  let indent = 0
  let end = at
  for (; end < lines.length; end += 1) {
    const line = lines[end]
    const match = ITEM.exec(line)
    const isInside = items.length > 0 && leading(line) >= indent && line.trim()
    if (match && !isInside && !RULE.test(line) && isOrdered(match[2]) === isOrdered(first)) {
      indent = match[0].length
      items.push([line.slice(indent)])
    } else if (isInside) items.at(-1).push(line.slice(indent))
    else if (!line.trim() && continues(lines, end + 1, indent, first)) items.at(-1).push('')
    else if (line.trim() && !isBlockStart(line) && lines[end - 1].trim()) items.at(-1).push(line.trim())
    else break
  }
  const make = () => {
    const made = element(isOrdered(first) ? 'ol' : 'ul')
    if (isOrdered(first)) made.start = Number.parseInt(first, 10)
    made.append(...items.map((item) => filled(element('li'), item, depth)))
    return made
  }
  return [end, make]
}

// After an empty line a list continues with an indented line or another item.
function continues(lines, at, indent, first) {
  const line = lines[at] ?? ''
  const match = ITEM.exec(line)
  return line.trim() && (leading(line) >= indent || (match && /\d/.test(match[2]) === /\d/.test(first) && !RULE.test(line)))
}

function leading(line) {
  return line.length - line.trimStart().length
}

function isTable(lines, at) {
  return lines[at].includes('|') && DASHES.test(lines[at + 1] ?? '') && lines[at + 1].includes('-')
    && cells(lines[at]).length === cells(lines[at + 1]).length
}

function table(lines, at) {
  let end = at + 2
  while (end < lines.length && lines[end].includes('|') && lines[end].trim()) end += 1
  const width = cells(lines[at]).length
  const row = (kind, line) => {
    const texts = cells(line)
    return element('tr', '', ...Array.from({ length: width }, (_, index) => inline(element(kind), texts[index] ?? '')))
  }
  const make = () => {
    const body = element('tbody', '', ...lines.slice(at + 2, end).map((line) => row('td', line)))
    return element('div', 'wide', element('table', '', element('thead', '', row('th', lines[at])), body))
  }
  return [end, make]
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/\|$/, '')
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'))
}

function paragraph(lines, at, depth) {
  let end = at + 1
  while (end < lines.length && lines[end].trim() && !isBlockStart(lines[end]) && !isTable(lines, end)) end += 1
  const text = lines.slice(at, end).map((line) => (depth ? line.trimStart() : line)).join('\n')
  return [end, () => inline(element('p'), text)]
}

function isBlockStart(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((each) => each.test(line))
}

function filled(place, lines, depth) {
  const inner = blocks(lines, depth + 1).map(({ make }) => make())
  // A single line in an item or a quote is not a paragraph, which would have margins.
  if (inner[0]?.tagName === 'P') inner[0].replaceWith(...inner.splice(0, 1, element('span', '', ...inner[0].childNodes)))
  place.append(...inner)
  return place
}

function inline(place, text, depth = 0) {
  const missing = new Set() // marks that do not end in the rest of the text
  let plain = ''
  let at = 0
  const add = (made, end) => {
    if (plain) place.append(plain)
    plain = ''
    place.append(made)
    at = end
  }
  while (at < text.length) {
    SPECIAL.lastIndex = at
    const next = SPECIAL.exec(text)?.index ?? text.length
    plain += text.slice(at, next)
    at = next
    if (at === text.length) break
    const found = pieceAt(text, at, depth, missing)
    if (found) add(...found)
    else if (text[at] === '\\' && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? '')) {
      plain += text[at + 1]
      at += 2
    } else {
      plain += text[at]
      at += 1
    }
  }
  if (plain) place.append(plain)
  return place
}

// Return an element and its end, or nothing.
function pieceAt(text, at, depth, missing) {
  const char = text[at]
  if (char === '`') return codeAt(text, at, missing)
  if (char === '[' || (char === '!' && text[at + 1] === '[')) return linkAt(text, at + (char === '!'), depth, missing)
  if (char === 'h' || char === 'H') {
    const bare = /\w/.test(text[at - 1] ?? '') ? null : BARE_LINK.exec(text.slice(at, at + 2048))
    return bare && [linkTo(bare[0], bare[0]), at + bare[0].length]
  }
  if (char === '\\' || depth >= MAX_DEPTH) return null
  for (const [mark, name] of MARKS) {
    if (!text.startsWith(mark, at)) continue
    const end = closing(text, at, mark, missing)
    if (end > 0) return [inline(element(name), text.slice(at + mark.length, end), depth + 1), end + mark.length]
  }
  return null
}

function codeAt(text, at, missing) {
  const [marks] = /^`+/.exec(text.slice(at, at + 64))
  if (missing.has(marks)) return null
  const end = text.indexOf(marks, at + marks.length)
  if (end < 0) {
    missing.add(marks)
    return null
  }
  const code = text.slice(at + marks.length, end).replaceAll('\n', ' ')
  return [element('code', '', /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code), end + marks.length]
}

function linkAt(text, at, depth, missing) {
  if (missing.has('](')) return null
  const middle = text.indexOf('](', at)
  if (middle < 0) {
    missing.add('](')
    return null
  }
  const end = text.indexOf(')', middle)
  const address = text.slice(middle + 2, end).replace(/[ \t]+["'].*$/, '').replace(/^<|>$/g, '')
  const words = text.slice(at + 1, middle)
  if (end < 0 || words.includes('\n\n') || words.includes('[') || !LINK.test(address)) return null
  return [inline(linkTo(address), words, depth + 1), end + 1]
}

function linkTo(address, ...content) {
  const link = element('a', '', ...content)
  link.href = address
  link.target = '_blank'
  link.rel = 'noopener noreferrer nofollow'
  return link
}

// Return the end of the emphasis that begins at `at`, or -1.
function closing(text, at, mark, missing) {
  const isWord = (index) => /[\p{L}\p{N}_]/u.test(text[index] ?? '')
  const isUnderscore = mark[0] === '_'
  const first = at + mark.length
  if (missing.has(mark) || /\s/.test(text[first] ?? ' ') || (isUnderscore && isWord(at - 1))) return -1
  for (let end = text.indexOf(mark, first); end >= 0; end = text.indexOf(mark, end + 1)) {
    const isLonger = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark)
    if (end > first && !isLonger && !/\s/.test(text[end - 1]) && !(isUnderscore && isWord(end + mark.length))) return end
  }
  missing.add(mark)
  return -1
}
