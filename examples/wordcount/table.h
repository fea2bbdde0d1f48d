/* A hash table of words and how often each was seen. */
#ifndef TABLE_H
#define TABLE_H

#include <stddef.h>

struct entry {
	char *word;
	unsigned long count;
};

struct table {
	struct entry *slots; /* of which words are NULL if free */
	size_t size, used;
};

/* table_add counts a word once more. It returns -1 when memory is short. */
int table_add(struct table *t, const char *word, size_t len);

/* table_sort orders the words, most frequent first, and returns how many there are.
   Nothing can be added afterwards. */
size_t table_sort(struct table *t);

void table_free(struct table *t);

#endif
