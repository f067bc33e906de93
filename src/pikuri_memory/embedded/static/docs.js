"use strict";
// Renders /openapi.json. Everything is put in as text, never as markup.

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties || {});
  element.append(...children);
  return element;
}

function resolver(api) {
  return (schema) => {
    while (schema && schema.$ref) {
      schema = schema.$ref.split("/").slice(1).reduce((part, name) => part[name], api);
    }
    return schema || {};
  };
}

// A value that fits the schema; optional fields are left out below the first level.
function example(schema, resolve, depth) {
  schema = resolve(schema);
  if (schema.examples) return schema.examples[0];
  if (schema.default !== undefined && schema.default !== null) return schema.default;
  if (schema.enum) return schema.enum[0];
  const some = schema.anyOf && schema.anyOf.find((part) => part.type !== "null");
  if (some) return example(some, resolve, depth);
  if (schema.type === "array") return [example(schema.items, resolve, depth + 1)];
  if (schema.type === "object" || schema.properties) {
    const needed = schema.required || [];
    const value = {};
    for (const [name, part] of Object.entries(schema.properties || {})) {
      if (needed.includes(name) || (depth === 0 && name === "user_id")) {
        value[name] = example(part, resolve, depth + 1);
      }
    }
    return value;
  }
  if (schema.type === "integer" || schema.type === "number") return schema.minimum || 0;
  if (schema.type === "boolean") return false;
  return "...";
}

function typeOf(schema, resolve) {
  const name = schema.$ref && schema.$ref.split("/").pop();
  if (name) return name;
  if (schema.anyOf) return schema.anyOf.map((part) => typeOf(part, resolve)).join(" or ");
  if (schema.enum) return schema.enum.map((word) => JSON.stringify(word)).join(" or ");
  if (schema.type === "array") return "list of " + typeOf(schema.items || {}, resolve);
  return schema.format || schema.type || "anything";
}

function fields(schema, resolve) {
  const found = resolve(schema);
  const needed = found.required || [];
  const rows = Object.entries(found.properties || {}).map(([name, part]) =>
    make("tr", {},
      make("td", {}, make("code", { textContent: name })),
      make("td", { textContent: typeOf(part, resolve) + (needed.includes(name) ? ", required" : "") }),
      make("td", { textContent: (part.deprecated ? "Deprecated. " : "") + (part.description || "") })));
  return make("table", {}, ...rows);
}

function section(title, ...children) {
  return [make("h3", { textContent: title }), ...children];
}

function form(method, path, operation, resolve) {
  const inputs = (operation.parameters || []).map((parameter) => {
    const input = make("input", { spellcheck: false });
    const about = [parameter.in, typeOf(parameter.schema, resolve)];
    if (parameter.required) about.push("required");
    const row = make("tr", {},
      make("td", {}, make("label", {}, make("code", { textContent: parameter.name }), " ", input)),
      make("td", { textContent: about.join(", ") }),
      make("td", { textContent: parameter.description || "" }));
    return { parameter, input, row };
  });
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  const body = content && make("textarea", {
    spellcheck: false, ariaLabel: "Request body",
    value: JSON.stringify(example(content.schema, resolve, 0), null, 2),
  });
  const send = make("button", { type: "button", textContent: `Send ${method}` });
  const reply = make("pre", { hidden: true });
  send.addEventListener("click", async () => {
    const headers = {};
    const query = new URLSearchParams();
    let target = path;
    for (const { parameter, input } of inputs) {
      if (parameter.in === "path") {
        target = target.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      } else if (input.value !== "") {
        if (parameter.in === "header") headers[parameter.name] = input.value;
        else query.set(parameter.name, input.value);
      }
    }
    const key = document.getElementById("key").value;
    if (key) headers["X-API-Key"] = key;
    if (body) headers["Content-Type"] = "application/json";
    if (query.size) target += "?" + query;
    reply.hidden = false;
    reply.textContent = "…";
    try {
      const answer = await fetch(target, { method, headers, body: body ? body.value : undefined });
      let text = await answer.text();
      try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it is */ }
      reply.textContent = `${answer.status}\n${text}`;
    } catch (error) {
      reply.textContent = String(error);
    }
  });
  const parts = [];
  if (inputs.length) parts.push(...section("Parameters", make("table", {}, ...inputs.map((each) => each.row))));
  if (body) parts.push(...section("Body", fields(content.schema, resolve), body));
  return [...parts, make("p", {}, send), reply];
}

function route(method, path, operation, resolve) {
  const replies = Object.entries(operation.responses).map(([status, reply]) =>
    make("tr", {}, make("td", {}, make("code", { textContent: status })),
      make("td", { textContent: reply.description })));
  return make("details", { className: "route" },
    make("summary", {},
      make("span", { className: "method", textContent: method }),
      make("span", { className: "path", textContent: path }), " ",
      make("span", { className: "quiet", textContent: operation.summary || "" })),
    make("div", {},
      make("p", { textContent: operation.description || "" }),
      ...form(method, path, operation, resolve),
      ...section("Replies", make("table", {}, ...replies))));
}

async function show() {
  const routes = document.getElementById("routes");
  try {
    const api = await (await fetch("/openapi.json")).json();
    const resolve = resolver(api);
    document.title = api.info.title;
    document.getElementById("name").textContent = api.info.title;
    document.getElementById("version").textContent = api.info.version;
    document.getElementById("about").textContent = api.info.description;
    routes.replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) =>
        route(method.toUpperCase(), path, operation, resolve))));
  } catch (error) {
    routes.textContent = `/openapi.json could not be read: ${error}`;
  }
}

show();
