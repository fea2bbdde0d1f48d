#include <stdlib.h>
#include <string.h>

#include "table.h"

static size_t hash(const char *s, size_t len)
{
	size_t h = 14695981039346656037u;
	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)s[i]) * 1099511628211u;
	return h;
}

static struct entry *find(const struct table *t, const char *word, size_t len)
{
	for (size_t i = hash(word, len);; i++) {
		struct entry *e = &t->slots[i % t->size];
		if (!e->word || (strncmp(e->word, word, len) == 0 && e->word[len] == '\0'))
			return e;
	}
}

static int grow(struct table *t)
{
	struct table bigger = {.size = t->size ? 2 * t->size : 64, .used = t->used};
	bigger.slots = calloc(bigger.size, sizeof *bigger.slots);
	if (!bigger.slots)
		return -1;
	for (size_t i = 0; i < t->size; i++)
		if (t->slots[i].word)
			*find(&bigger, t->slots[i].word, strlen(t->slots[i].word)) = t->slots[i];
	free(t->slots);
	*t = bigger;
	return 0;
}

int table_add(struct table *t, const char *word, size_t len)
{
	if (2 * t->used >= t->size && grow(t) < 0)
		return -1;
	struct entry *e = find(t, word, len);
	if (!e->word) {
		e->word = strndup(word, len);
		if (!e->word)
			return -1;
		t->used++;
	}
	e->count++;
	return 0;
}

static int order(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	if (!x->word || !y->word)
		return !x->word - !y->word;
	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(x->word, y->word);
}

size_t table_sort(struct table *t)
{
	if (t->size)
		qsort(t->slots, t->size, sizeof *t->slots, order);
	return t->used;
}

void table_free(struct table *t)
{
	for (size_t i = 0; i < t->size; i++)
		free(t->slots[i].word);
	free(t->slots);
	memset(t, 0, sizeof *t);
}
