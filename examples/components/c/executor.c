/* A component of the world in wit/executor.wit, without wit-bindgen: the canonical ABI by hand. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("bitzel:executor/host@0.1.0"), import_name(name)))

typedef struct { char *at; uint32_t len; } string;
typedef struct { string a, b; } pair;
/* result<string, string> and result<list<u8>, string> */
typedef struct { uint8_t failed; string value; } answer;
typedef struct {
	string signature;
	pair *files;
	uint32_t files_len;
	string out, err;
	int32_t code;
	uint64_t ms;
} output;
typedef struct { uint8_t failed; union { output ok; string error; } is; } result;
_Static_assert(sizeof(output) == 48 && sizeof(result) == 56, "as the canonical ABI has it");

IMPORT("fetch-file") void host_fetch(const char *, uint32_t, answer *);
IMPORT("store-file") void host_store(const char *, uint32_t, answer *);
IMPORT("log") void host_log(const char *, uint32_t, const char *, uint32_t);

/* How the host has us allocate what it gives. */
EXPORT("cabi_realloc") void *cabi_realloc(void *old, uint32_t old_size, uint32_t align, uint32_t size)
{
	(void)old_size, (void)align; /* realloc aligns for all */
	void *p = realloc(old, size ? size : 1);
	if (!p)
		abort();
	return p;
}

static void add(string *to, const char *at, uint32_t len)
{
	to->at = cabi_realloc(to->at, 0, 1, to->len + len);
	memcpy(to->at + to->len, at, len);
	to->len += len;
}

/* word takes one from the front of a line. */
static string word(string *line)
{
	string w = { line->at, 0 };
	while (w.len < line->len && w.at[w.len] != ' ')
		w.len++;
	uint32_t skip = w.len + (w.len < line->len);
	line->at += skip;
	line->len -= skip;
	return w;
}

static int is(string w, const char *s) { return w.len == strlen(s) && !memcmp(w.at, s, w.len); }

/* run does what a line says; it returns 1 after the last, and -1 with o->err for one that is wrong. */
static int run(string line, output *o)
{
	string command = word(&line);
	answer a = { 0 };
	if (is(command, "say")) {
		add(&o->out, line.at, line.len);
		add(&o->out, "\n", 1);
	} else if (is(command, "put")) {
		string path = word(&line);
		host_store(line.at, line.len, &a);
		if (!a.failed) {
			o->files = cabi_realloc(o->files, 0, 4, (o->files_len + 1) * sizeof *o->files);
			pair *f = &o->files[o->files_len++];
			*f = (pair){ .b = a.value };
			add(&f->a, path.at, path.len);
		}
	} else if (is(command, "get")) {
		string hash = word(&line);
		host_fetch(hash.at, hash.len, &a);
		if (!a.failed) {
			add(&o->out, a.value.at, a.value.len);
			free(a.value.at);
		}
	} else if (is(command, "exit")) {
		o->code = 0;
		for (uint32_t i = 0; i < line.len; i++)
			o->code = 10 * o->code + line.at[i] - '0';
		return 1;
	} else if (command.len > 0) {
		a.failed = 1;
		add(&a.value, "no such command: ", 17);
		add(&a.value, command.at, command.len);
	}
	if (!a.failed)
		return 0;
	add(&o->err, a.value.at, a.value.len);
	return -1;
}

EXPORT("bitzel:executor/executor@0.1.0#ping") int32_t ping(void) { return 1; }

EXPORT("bitzel:executor/executor@0.1.0#execute-task")
result *execute(char *name, uint32_t name_len, char *recipe, uint32_t recipe_len, char *script_at, uint32_t script_len, char *workdir,
		uint32_t workdir_len, pair *env, uint32_t env_len, string *outputs, uint32_t outputs_len, int32_t has_timeout, int64_t timeout)
{
	(void)recipe, (void)recipe_len, (void)workdir, (void)workdir_len, (void)env, (void)env_len, (void)outputs, (void)outputs_len;
	(void)has_timeout, (void)timeout;
	string script = { script_at, script_len };
	host_log("info", 4, name, name_len);
	result *r = calloc(1, sizeof *r);
	if (!r)
		abort();
	output *o = &r->is.ok;
	for (int end = 0; script.len > 0 && !end;) {
		string line = { script.at, 0 };
		while (line.len < script.len && line.at[line.len] != '\n')
			line.len++;
		uint32_t skip = line.len + (line.len < script.len);
		script.at += skip;
		script.len -= skip;
		end = run(line, o);
		if (end < 0) {
			string why = o->err;
			r->failed = 1;
			r->is.error = why;
		}
	}
	return r;
}

EXPORT("cabi_post_bitzel:executor/executor@0.1.0#execute-task") void post(result *r)
{
	if (r->failed) {
		free(r->is.error.at);
	} else {
		for (uint32_t i = 0; i < r->is.ok.files_len; i++) {
			free(r->is.ok.files[i].a.at);
			free(r->is.ok.files[i].b.at);
		}
		free(r->is.ok.files);
		free(r->is.ok.out.at);
	}
	free(r);
}
