// Four named values of the widget threshold, as buttons: they set that widget and keep nothing of their own.
import { element } from "./element.js";

export const PRESETS = [
  { name: "final", threshold: 0.3, about: "For a final video: hardly a difference." },
  { name: "default", threshold: 0.5, about: "To begin with." },
  { name: "preview", threshold: 1, about: "Looking for a seed or a prompt." },
  { name: "draft", threshold: 2, about: "Drafts: differences show." },
];

/** The row of buttons of a node; `show` marks the one that its threshold has. */
export function presetsOf(node) {
  const widget = () => node.widgets?.find((w) => w.name === "threshold");
  const row = element("div", "foresight-presets");
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", "Presets of threshold");
  const buttons = PRESETS.map(({ name, threshold, about }) => {
    const button = element("button", "", name);
    button.type = "button";
    button.title = `${about} Sets threshold to ${threshold}.`;
    button.addEventListener("click", () => {
      const found = widget();
      if (!found) return;
      found.value = threshold;
      found.callback?.(threshold);
      node.graph?.setDirtyCanvas?.(true, true);
      show();
    });
    row.append(button);
    return button;
  });
  function show() {
    const linked = node.inputs?.some((input) => input.widget?.name === "threshold" && input.link != null);
    const value = Number(widget()?.value);
    buttons.forEach((button, i) => {
      button.disabled = Boolean(linked); // another node says it
      button.setAttribute("aria-pressed", String(!linked && PRESETS[i].threshold === value));
    });
  }
  show();
  return { row, show };
}
