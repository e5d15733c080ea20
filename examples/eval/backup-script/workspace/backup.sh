#!/bin/sh
# backup.sh SOURCE TARGET: copy all .txt files of SOURCE into TARGET, which is made if it is missing.
mkdir -p $2
for file in $(ls $1/*.txt); do
    cp $file $2/
done
