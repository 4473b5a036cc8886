// SPDX-License-Identifier: Apache-2.0
// Making DOM nodes without a framework.

/** `h('button', { onclick }, 'text', child)`; null children are left out. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith('on') || ['value', 'checked', 'disabled', 'className', 'title', 'textContent'].includes(name)) {
      node[name] = value;
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? '' : value);
    }
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

export const colour = ([red, green, blue]) => `rgb(${red}, ${green}, ${blue})`;

/** A button with its keyboard shortcut. */
export function button(text, key, onclick, props = {}) {
  const label = key ? [text, h('kbd', {}, key)] : [text];
  const { className = '', ...others } = props;
  return h('button', { type: 'button', className: `kp-button ${className}`, onclick, ...others }, ...label);
}

export function section(title, ...children) {
  return h('section', {}, h('h2', {}, title), ...children);
}
