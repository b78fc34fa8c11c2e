// The conversation, kept in this browser so that a reload doesn't lose it. Where nothing may be kept, nothing is.

const KEY = 'fanlight:conversation';

/** @typedef {{role: string, content: string}} Message */
/** @typedef {{model: string, device: string, messages: Message[]}} Conversation model: a URL, or '' for a picked file */

/** @returns {Conversation | null} */
export function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? 'null');
    const { model, device, messages } = found ?? {};
    const sound = Array.isArray(messages) && messages.every((m) => typeof m?.role === 'string' && typeof m?.content === 'string');
    return sound && typeof model === 'string' && typeof device === 'string' ? found : null;
  } catch {
    return null;
  }
}

/** @param {Conversation} conversation */
export function remember(conversation) {
  try {
    localStorage.setItem(KEY, JSON.stringify(conversation));
  } catch {
    // a window that keeps nothing, or a conversation larger than its room
  }
}

export function forget() {
  try {
    localStorage.removeItem(KEY);
  } catch {
    // nothing was kept
  }
}
