-- Narrative frames of the world generator (pyramid.world): small scenes into which facts are set. A
-- frame is a list of sentences in their order. [a|b] is one of the alternatives; {P} is the hero of
-- the scene with {he} {him} {his}, {Q} a companion with {he2} {him2} {his2}; {at} is a place with
-- its preposition; the rest is scenery.
-- Frames state nothing that is ever asked for.

return {
  {
    "It was a {weather} morning in {season}.",
    "{P} [got up early|rose before the sun|woke before the others] and [opened the window|went "
      .. "out into the "
      .. "yard|lit the fire].",
    "[The air smelled of hay|The birds were already singing|A thin mist lay over the fields].",
    "{He} thought about the day that lay ahead.",
  },
  {
    "On {day} {P} and {Q} [walked|went|set out together] to the market.",
    "The stalls were [full of {food}|crowded and loud|bright with flags].",
    "{Q} bargained for [a bag of {food}|a new broom|some thread], but the price was [too "
      .. "high|fair enough|a "
      .. "little strange].",
    "They [shared a pie|rested on a bench|listened to a fiddler] before they went home.",
  },
  {
    "The rain [began before noon|came down hard|did not stop all day].",
    "{P} [sat by the stove|stood at the window|waited under the eaves] and [counted the "
      .. "drops|listened to the "
      .. "wind|told old stories].",
    "{Q} came in with wet boots and [laughed|sneezed|asked for tea].",
    "By evening the road had turned to mud.",
  },
  {
    "{P} had [a long way to go|a letter to deliver|some work to finish] that day.",
    "The path led [past the pond|over the hill|through the pine wood].",
    "Twice {he} stopped to [look back|tie {his} shoe|watch {animal_a}].",
    "[Nobody else was on the road|Only a cart passed by|A boy waved from a wall].",
  },
  {
    "In the evening everybody met {at}.",
    "{Q} [brought {food}|played a slow tune|told a joke], and {P} [laughed out "
      .. "loud|clapped|shook {his} head].",
    "[The lamps burned low|The fire crackled|The cat slept by the hearth].",
    "[It was late when they parted|Nobody wanted to leave|At last the moon came up].",
  },
  {
    "{P} was looking for something {at}.",
    "{He} [turned over every stone|searched for an hour|looked high and low], but found only "
      .. "[dust|an old "
      .. "coin|a broken cup].",
    "\"[What are you doing there|Have you lost something|Can I help you]?\" asked {Q}.",
    "\"[Never mind|It is nothing|I will tell you later],\" said {P}.",
  },
  {
    "Winter had come to the valley.",
    "Snow lay [on every roof|deep in the lanes|as far as the eye could see].",
    "{P} [cut wood|cleared the path|fed the birds] while {Q} [cooked {food}|mended a "
      .. "sledge|warmed {his2} hands].",
    "At night the wolves could be heard in the hills.",
  },
  {
    "There was [a feast|a wedding|a dance] in the village that {day}.",
    "{P} had [put on {his} best clothes|washed {his} face twice|practised the steps all week].",
    "{Q} [danced until {his2} feet hurt|ate more {food} than anybody|sang the loudest of all].",
    "The old people said that it had never been so merry.",
  },
  {
    "One night {P} could not sleep.",
    "{He} [heard an owl|saw a light|heard steps] outside and [went to the door|held {his} "
      .. "breath|called out softly].",
    "It was only {Q}, who had [lost the way|forgotten the time|come to borrow some oil].",
    "They talked until the stars grew pale.",
  },
  {
    "{P} and {Q} went down to the river.",
    "The water was [high and brown|clear as glass|cold and quick].",
    "They [threw stones|fished for an hour|watched {animal_a} on the far bank].",
    "\"[I like it here|We should come more often|How quiet it is],\" said {Q}.",
  },
  {
    "At school the children [were noisy|sat very still|drew pictures of ships].",
    "{P} [told them about the sea|wrote a long sum on the board|asked who had seen {animal_a}].",
    "Only {Q} [knew the answer|looked out of the window|raised {his2} hand].",
    "When the bell rang, they all ran out into the sun.",
  },
  {
    "The harvest was [good|late|poor] that year.",
    "{P} [worked from dawn to dusk|carried sacks all day|drove the cart], and {Q} [bound the "
      .. "sheaves|counted "
      .. "the baskets|sharpened the tools].",
    "They ate {food} in the shade and drank cool water.",
    "[Their backs ached|The sun was fierce|Dust was everywhere], but nobody complained.",
  },
  {
    "{P} was [ill|tired|out of spirits] for some days.",
    "{Q} [came every morning|sat by the bed|sent a pot of {food}] and [read aloud|told the "
      .. "news|opened the curtains].",
    "By {day} {P} [was on {his} feet again|felt much better|could laugh again].",
  },
  {
    "A stranger came [over the bridge|down the lane|to the inn] on {day}.",
    "Nobody knew [his name|where he came from|what he wanted].",
    "{P} [gave him bread|asked him many questions|watched him closely].",
    "He [told of far countries|paid with foreign coins|slept in the hay], and in the morning he "
      .. "was gone.",
  },
  {
    "{P} found [an old book|a torn page|a dusty picture] {at}.",
    "{He} showed it to {Q}, who [could not read it|turned it round and round|smiled].",
    "\"[Somebody must have left it here|It is older than we are|Keep it safe],\" said {Q}.",
  },
  {
    "The two friends quarrelled about [a small thing|a debt|the weather].",
    "{P} [slammed the door|would not speak|went home alone].",
    "But {Q} [was sorry|came back with {food}|wrote a kind note], and soon [all was well|they "
      .. "made it up|they "
      .. "laughed about it].",
  },
  {
    "{P} was building [a wall|a cart|a little boat].",
    "{Q} [held the boards|passed the nails|gave advice that nobody needed].",
    "By {day} the work was [half done|finished at last|not yet begun in earnest].",
    "{He} looked at it with [pride|doubt|{his} hands on {his} hips].",
  },
  {
    "A [storm|great wind|flood] came in the night.",
    "It [broke the old fence|tore slates from the roofs|carried off the small bridge].",
    "{P} and {Q} [worked side by side|helped wherever they could|went from house to house].",
    "In the morning the sky was washed and clean.",
  },
  {
    "{P} told a story about {animal_a}.",
    "The {animal} had [lost its tail|learned to talk|outwitted a king].",
    "{Q} did not [believe a word|like the ending|want it to stop].",
    "\"[And is it true|Where did you hear that|What happened then]?\" {he2} asked.",
  },
  {
    "They had [bread and {food}|nothing but {food}|a great dish of {food}] for supper.",
    "{P} [said grace|cut the loaf|poured the milk].",
    "{Q} [ate slowly|asked for more|told them about the journey].",
    "Afterwards they washed the plates and sat by the fire.",
  },
  {
    "{P} climbed the hill behind the village.",
    "From there {he} could see [the sea|seven church towers|the smoke of {town}].",
    "{He} [sat down in the grass|called to the sheep|thought of old times].",
    "The wind was {weather} and the clouds went quickly.",
  },
  {
    "It was market day, and the roads were full.",
    "{Q} [drove a cart of {food}|led two cows|carried a heavy basket].",
    "{P} [walked beside {him2}|bought a cup of cider|met an old friend].",
    "They were home before dark.",
  },
  {
    "One {day} the bells rang at noon.",
    "[Nobody knew why|There was news from the city|The ship had come in at last].",
    "{P} ran [to the square|to the harbour|up the lane] and found {Q} already there.",
    "People [cheered|whispered|threw their hats into the air].",
  },
  {
    "{P} was learning to [swim|play chess|bake bread|ride].",
    "{Q} was [a patient teacher|no great help|always close by].",
    "At first {he} [failed|was afraid|made every mistake there is].",
    "But with each day it went a little better.",
  },
  {
    "The woods were dark and [still|wet|full of sounds].",
    "{P} [carried a torch|whistled to keep {his} courage|went first].",
    "Something moved, but it was only {animal_a}.",
    "{Q} [laughed with relief|took {his2} breath again|said nothing for a while].",
  },
  {
    "{P} wrote a letter that evening.",
    "{He} [chose every word with care|wrote three pages|began it four times].",
    "It told of [the harvest|the long rain|a new song|small things], and of how much {he} missed "
      .. "{Q}.",
    "The post would go on {day}.",
  },
  {
    "In {season} the [days were long|swallows came back|nights were clear].",
    "{P} [slept under the open sky|walked barefoot|left the door open].",
    "{Q} [came by now and then|brought {food} from the garden|said that it could not last].",
  },
  {
    "They played a game of [cards|chess|riddles] {at}.",
    "{P} [won twice|lost every round|cheated a little].",
    "{Q} [did not mind|frowned at the board|wanted to play again].",
    "Outside {animal_a} cried in the dark.",
  },
  {
    "{P} had an idea.",
    "\"[Let us ask the others|We could try it once more|What if we wait until {day}],\" {he} said.",
    "{Q} [thought it over|was not so sure|agreed at once].",
    "So they [went to work|shook hands on it|slept on it].",
  },
  {
    "The train [was late|stood still for an hour|was full of soldiers].",
    "{P} [shared a seat with {Q}|read an old paper|ate {food} from a bag].",
    "Fields and rivers [went by|shone in the sun|lay under mist].",
    "At the last station [nobody was waiting|a band was playing|it had begun to snow].",
  },
  {
    "{Q} was singing {at}.",
    "{P} [stopped to listen|knew the song well|joined in softly].",
    "It was [an old tune|a song of the sea|a song without an end].",
    "When it was over, neither of them spoke.",
  },
  {
    "Some of the sheep had got [out of the field|into the garden|lost in the fog].",
    "{P} [ran left|took the dog|called them by name], and {Q} [ran right|held the gate|counted "
      .. "them as they came].",
    "In the end [none was missing|only one was missing|they found them all].",
  },
  {
    "There was a fair [outside the town|on the green|by the river].",
    "{P} [rode the wooden horses|threw rings|saw a man who swallowed fire].",
    "{Q} won [a paper flower|a sugar heart|nothing at all].",
    "They walked home with [sticky hands|empty pockets|a song on their lips].",
  },
  {
    "{P} swept the floor and [shook the rugs|washed the steps|cleaned the lamps].",
    "{Q} [promised to help|sat in the way|came with a bucket], and [it went quickly|it took all "
      .. "day|they sang "
      .. "as they worked].",
    "Afterwards the house [shone|smelled of soap|was as good as new].",
  },
  {
    "The sea was [calm|rough|grey] that {day}.",
    "{P} [looked after the nets|rowed out with {Q}|sat on the rocks].",
    "Gulls [cried over the mast|followed the boat|stood on the posts].",
    "In the distance a white sail [came and went|hung for hours|turned to the south].",
  },
  {
    "A message came for {P}.",
    "{He} [read it twice|put it away|went pale] and said, \"[I must think|It is good news|We "
      .. "have until {day}].\"",
    "{Q} [asked no questions|wanted to know more|sat down beside {him}].",
  },
  {
    "{P} remembered [an old saying|the house of {his} childhood|a summer long ago].",
    "\"[Time is a river|Nothing is ever quite lost|We were happy then],\" {he} said.",
    "{Q} nodded and [poured more tea|looked into the fire|was silent].",
  },
  {
    "The well had run dry, and water had to be [carried|fetched|brought] from the spring.",
    "{P} made [six|four|three] trips before breakfast.",
    "{Q} took the other bucket and [sang on the way|spilled half of it|never rested].",
    "[On {day} it rained at last|People grew careful with every cup|The garden suffered most].",
  },
  {
    "{P} lay in the grass and watched the clouds.",
    "One looked like {animal_a}, and one [like a ship|like a castle|like nothing at all].",
    "\"[What do you see|Are you asleep|It will rain soon],\" said {Q}.",
    "The afternoon passed slowly.",
  },
  {
    "Before the journey there was much to do.",
    "{P} [packed {food} and rope|oiled the wheels|drew a map].",
    "{Q} [checked everything twice|said goodbye to everybody|could hardly wait].",
    "They left [at dawn|on {day}|when the moon was up].",
  },
}
